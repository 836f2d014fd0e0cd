"A task that stands outside the package: the lesson's one keeps the contract, which is run over it unedited"
import json, os, re, subprocess, sys
from pathlib import Path
import pytest
from sft_nb.core.basics import TaskError
from sft_nb.data.task import all_tasks

root = Path(__file__).resolve().parents[1]

def written(folder):
    "(name, folder) of a module: the cell of the lesson that is the whole task"
    cells = json.loads((root/'nbs'/'tutorials'/'10_own_task.ipynb').read_text(encoding='utf8'))['cells']
    found = [''.join(c['source']) for c in cells if ''.join(c['source']).startswith('%%writefile')]
    assert len(found)==1
    first,_,text = found[0].partition('\n')
    name = re.search(r'(\w+)\.py$', first)[1]
    (folder/f'{name}.py').write_text(text, encoding='utf8')
    return name,folder

@pytest.fixture
def module(tmp_path): return written(tmp_path)

def run(module, folder, *args):
    path = os.pathsep.join([str(folder), str(root), os.environ.get('PYTHONPATH', '')])
    return subprocess.run([sys.executable, *map(str, args)], cwd=root, capture_output=True, text=True, env={**os.environ, 'SFT_NB_TASKS':module, 'PYTHONPATH':path})

def test_the_contract_holds_for_a_task_of_ones_own(module):
    r = run(*module, '-m', 'pytest', '-q', '-rs', '-p', 'no:cacheprovider', '-k', 'series', 'tests/test_tasks.py')
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-1000:]
    collected = subprocess.run([sys.executable, '-m', 'pytest', '-q', '--collect-only', '-k', 'translation', 'tests/test_tasks.py'], cwd=root, capture_output=True, text=True)
    n = int(re.search(r'test_tasks.py: (\d+)', collected.stdout)[1])
    assert n>20 and 'SKIPPED' not in r.stdout and r.stdout.splitlines()[0].count('.')==n

def test_the_command_line_knows_it(module, tmp_path):
    r = run(*module, '-m', 'sft_nb', 'demo', 'series', '--out', tmp_path/'out', '--epochs', 2)
    assert r.returncode==0 and r.stdout.startswith('accuracy '), r.stderr
    assert 'series' in run(*module, '-m', 'sft_nb', 'tasks').stdout
    alone = run('', tmp_path, '-m', 'sft_nb', 'predict', tmp_path/'out', '1 2 3')
    assert alone.returncode==2 and "There is no task 'series'" in alone.stderr

def test_a_module_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv('SFT_NB_TASKS', 'no_such_task_module')
    with pytest.raises(TaskError, match="SFT_NB_TASKS names the module 'no_such_task_module', which cannot be imported"): all_tasks()

@pytest.fixture(scope='module')
def series(tmp_path_factory):
    "The lesson's task in this process, with an evaluation of a learner that was trained for a moment"
    import importlib.util
    from sft_nb.data import task as tasks
    from sft_nb.data.load import load_data
    from sft_nb.evaluation.evaluate import evaluate
    from sft_nb.tasks.demo_data import DEMOS
    from sft_nb.tasks.toys import make_toy, TOYS
    from sft_nb.training.learner import sft_learner
    folder = tmp_path_factory.mktemp('series')
    before = tasks._tasks.copy()
    spec = importlib.util.spec_from_file_location('series_task', written(folder)[1]/'series_task.py')
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    toy = make_toy('series', folder/'toy')
    learn = sft_learner(load_data('series', toy['source'], checkpoint=toy['checkpoint'], valid=.25))
    with learn.no_bar(), learn.no_logging(): learn.fit_head(20)
    yield toy,learn,evaluate(learn)
    tasks._tasks.clear()
    tasks._tasks.update(before)
    for o in (TOYS, DEMOS): o.pop('series')

def test_cards_show_a_picture_of_each_series(series):
    from sft_nb.inspection.cards import card_html, detail_html
    _,_,ev = series
    cards = [card_html(r, ev.task) for r in ev.rows.to_dict('records')]
    assert all(o.count('<img')==1 for o in cards) and len(set(cards))==len(ev)
    assert 'sft-big' in detail_html(ev.rows.iloc[0].to_dict(), ev.task)

def test_slices_and_cues_take_its_numbers(series):
    from sft_nb.diagnosis.check import check_data
    toy,_,ev = series
    assert any(o.startswith('turns') for o in ev.slices('turns', bins=2, least=2).slice)
    found = check_data('series', toy['source'], checkpoint=toy['checkpoint']).audit
    assert {'mean','spread','turns'}<={*found.spec.task.inputs[0].measured} and found.spec.rows.series.notna().all()

def test_an_audit_finds_what_gives_the_label_away_and_what_is_there_twice(series):
    import pandas as pd
    from sft_nb.data.load import load_data
    from sft_nb.diagnosis.audit import audit
    toy,_,_ = series
    rows = pd.read_csv(toy['source'])
    numbers = [[float(v) for v in o.split()] for o in rows.series[:2]]
    again = [' '.join(f'{v:.6f}' for v in numbers[0]), ' '.join(f'{v+.001*i:.4f}' for i,v in enumerate(numbers[1]))]
    found = audit(load_data('series', pd.concat([rows, rows[:2].assign(series=again)], ignore_index=True), checkpoint=toy['checkpoint'], valid=.25))
    pairs = {frozenset((r.item, r.other_item)):r.kind for r in found.duplicates.itertuples()}
    assert pairs[frozenset(('row 0','row 24'))]=='exact' and pairs[frozenset(('row 1','row 25'))]=='near'
    assert found.cues.set_index('cue').skill['turns']>.5
    assert found.to_html().count('<img')>=4

def test_baselines_beside_it(series):
    _,_,ev = series
    made = ev.baselines()
    assert list(made)==['majority','levels','untuned'] and made['levels'].metrics['accuracy']>made['majority'].metrics['accuracy']

def test_a_page_and_a_saved_evaluation(series, tmp_path):
    from sft_nb.evaluation.tables import evaluate_table, load_evaluation
    _,_,ev = series
    page = ev.to_html(tmp_path/'page.html').read_text()
    assert page.count('data:image/')>=len(ev) and 'class="sft-grid"' in page
    assert load_evaluation(ev.save(tmp_path/'ev.parquet')).metrics==ev.metrics
    assert evaluate_table(ev.rows[['series','target','prediction']]).task.name=='series'

def test_the_onnx_file_says_what_the_model_says(series, tmp_path):
    import numpy as np, torch
    onnxruntime = pytest.importorskip('onnxruntime')
    from sft_nb.deployment.onnx_file import export_onnx
    _,learn,_ = series
    session = onnxruntime.InferenceSession(str(export_onnx(learn, tmp_path/'series.onnx')))
    x = torch.randn(5, 16, 1)
    with torch.no_grad(): want = learn.model.eval()(x).numpy()
    assert np.allclose(session.run(None, dict(series=x.numpy()))[0], want, atol=1e-4)
