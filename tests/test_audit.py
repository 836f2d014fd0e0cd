"The audit finds faults that are planted into the packaged data, a part of them; benchmarks/audit.py measures all"
import shutil, sys, tempfile
from pathlib import Path
import numpy as np, pandas as pd, pytest
from sft_nb.diagnosis.audit import audit; from sft_nb.data.load import load_data
from sft_nb.core.basics import DataError
from sft_nb.data.task import get_task
from sft_nb.tasks.toys import make_toy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'benchmarks'))
from audit import found_copies, found_flips, loaded, rows_of

@pytest.fixture(scope='module', autouse=True)
def own_tables(tmp_path_factory):
    "`rows_of` keeps its tables in the temporary folder of the machine: here in one that no other run writes to"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(tempfile, 'tempdir', str(tmp_path_factory.mktemp('tables')))
        yield

@pytest.mark.parametrize('data,least', [('digits', .8), ('amazon', .4)])
def test_changed_labels_are_suspect(data, least):
    "5 % changed labels; by chance a tenth of them would be in the most suspect tenth"
    task,rows = rows_of(data, 1, 600)
    assert found_flips(task, rows, 1)>=least

def test_copies_across_the_split_are_found():
    task,rows = rows_of('amazon', 1, 600)
    assert found_copies(task, rows, 1)>=.95

@pytest.mark.slow
@pytest.mark.parametrize('data,least', [('digits', .8), ('amazon', .5)])
def test_all_rows(data, least):
    task,rows = rows_of(data, 1)
    clean = audit(loaded(task, rows))
    assert not (clean.findings.severity=='error').any()
    assert found_flips(task, rows, 1)>=least and found_copies(task, rows, 1)>=.95

def test_excluded_items_may_be_of_validation_data(tmp_path):
    "Names of the audit are also those of rows that came by valid=PATH"
    toy = make_toy('text', tmp_path)
    rows = pd.read_csv(toy['source'])
    rows.iloc[1:].to_csv(tmp_path/'train.csv', index=False)
    rows.iloc[:9].to_csv(tmp_path/'held.csv', index=False)
    def load(**kw): return load_data('text', tmp_path/'train.csv', valid=tmp_path/'held.csv', checkpoint=toy['checkpoint'], **kw)
    dls = load()
    found = audit(dls)
    leaked = found.exclude('leak')
    assert len(leaked)>=8 and set(leaked)<=set(dls.sft.split('train')['item'])
    one = dls.sft.split('valid')['item'].iloc[0]
    assert one not in set(load(exclude=[one]).sft.rows['item'])
    with pytest.raises(DataError, match='not an item'): load(exclude=['nothing'])
