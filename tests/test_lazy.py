"Rows that stay where they are until they are asked for give the same as rows in memory: splits, training, predictions; and what is written a part at a time"
import io, pickle, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from datasets import Dataset
from PIL import Image
from sft_nb.evaluation import evaluate as evaluate_module
from sft_nb.all import *
from sft_nb.data.task import get_task
from sft_nb.data.lazy import is_lazy, LazyArray
from sft_nb.tasks.toys import make_toy

@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch): monkeypatch.setenv('SFT_NB_HOME', str(tmp_path/'home'))

def texts(folder, times=10):
    "(Parquet file, checkpoint)"
    toy = make_toy('text', folder/'toy')
    rows = pd.concat([pd.read_csv(toy['source'])]*times, ignore_index=True)
    rows['text'] = [f'{t} {"day "*(i%7)}{i}' for i,t in enumerate(rows.text)]
    rows.assign(stars=range(len(rows)), note='x').to_parquet(folder/'rows.parquet', index=False)
    return folder/'rows.parquet', toy['checkpoint']

def pictures(folder):
    rng = np.random.default_rng(0)
    def png(i):
        out = io.BytesIO()
        Image.fromarray((rng.random((24,24,3))*(60 if i%2 else 255)).astype(np.uint8)).save(out, 'PNG')
        return out.getvalue()
    toy = make_toy('image', folder/'toy')
    pd.DataFrame(dict(image=[png(i) for i in range(24)], label=['dark' if i%2 else 'light' for i in range(24)])).to_parquet(folder/'rows.parquet', index=False)
    return folder/'rows.parquet', toy['checkpoint'], toy['pretrained']

def same(a, b):
    pd.testing.assert_frame_equal(*(o.assign(**{c:list(o[c]) for c in o}) for o in (a,b)), check_dtype=False)

def trained(task, source, lazy, checkpoint, **kw):
    dls = load_data(task, source, checkpoint=checkpoint, lazy=lazy, batch_size=8, **kw)
    learn = sft_learner(dls)
    with learn.no_bar(), learn.no_logging():
        learn.fit_head(1)
        learn.fine_tune(1)
    return learn

@pytest.mark.parametrize('kind', ['parquet','dataset'])
def test_training_is_the_same(tmp_path, kind):
    path,ckpt = texts(tmp_path, 6)
    source = path if kind=='parquet' else Dataset.from_parquet(str(path), cache_dir=str(tmp_path/'hf'))
    whole,lazy = (trained('text', source, o, ckpt) for o in (False,True))
    assert is_lazy(lazy.spec.rows.text) and not is_lazy(lazy.spec.rows.label) and not is_lazy(lazy.spec.rows.stars) and not is_lazy(whole.spec.rows.text)
    same(whole.spec.rows, lazy.spec.rows)
    assert [o['train_loss'] for o in whole.history]==[o['train_loss'] for o in lazy.history]
    same(evaluate(whole).rows, evaluate(lazy).rows)

def test_pictures_in_a_table(tmp_path):
    path,ckpt,pretrained = pictures(tmp_path)
    a,b = (trained('image', path, o, ckpt, pretrained=pretrained, augment=False) for o in (False,True))
    assert is_lazy(b.spec.rows.image)
    same(evaluate(a).rows, evaluate(b).rows)

def test_parts_are_one_evaluation(tmp_path, monkeypatch):
    path,ckpt = texts(tmp_path, 6)
    model = load_predictor(save_predictor(trained('text', path, True, ckpt), tmp_path/'model', metrics={}))
    want = evaluate(model, path)
    monkeypatch.setattr(evaluate_module, '_PART', 10)
    ev = evaluate(model, path, lazy=True, out=tmp_path/'ev.parquet')
    back = load_evaluation(tmp_path/'ev.parquet')
    for o in (ev, back):
        same(o.rows, want.rows.assign(loss=o.rows.loss, probability=o.rows.probability))
        assert np.allclose(o.rows.loss.astype(float), want.rows.loss, atol=1e-5) and np.allclose(o.probabilities, want.probabilities, atol=1e-6)
        assert o.metrics==want.metrics
    assert is_lazy(ev.rows.text) and not list(tmp_path.glob('.ev*'))
    parts = list(model.stream(path, part=10))
    assert [len(o) for o in parts]==[10]*(len(want)//10)+[len(want)%10]*bool(len(want)%10)
    assert list(pd.concat(parts).item)==list(want.rows.item) and list(pd.concat(parts).prediction)==list(want.rows.prediction)
    ds = Dataset.from_parquet(str(path), cache_dir=str(tmp_path/'hf'))
    streamed = pd.concat(model.stream(ds, part=10))
    assert list(streamed.item)==[f'row {i}' for i in range(len(ds))] and list(streamed.prediction)==list(want.rows.prediction)
    endless = model.stream(ds.to_iterable_dataset(), part=10)
    assert list(next(endless).prediction)==list(want.rows.prediction)[:10]

def test_a_file_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    path,ckpt = texts(tmp_path, 3)
    model = sft_learner(load_data('text', path, checkpoint=ckpt))
    monkeypatch.setattr(evaluate_module, '_PART', 10)
    made = evaluate_module._one_part
    seen = []
    def breaks(*args):
        seen.append(1)
        if len(seen)>2: raise KeyboardInterrupt
        return made(*args)
    monkeypatch.setattr(evaluate_module, '_one_part', breaks)
    with pytest.raises(KeyboardInterrupt): evaluate(model, path, lazy=True, out=tmp_path/'ev.parquet')
    assert not list(tmp_path.glob('*ev*'))

def test_bad_rows_are_all_named(tmp_path):
    path,ckpt = texts(tmp_path, 3)
    rows = pd.read_parquet(path)
    rows.loc[[4,30],'text'] = None
    rows.loc[7,'text'] = '  '
    rows.to_parquet(path, index=False)
    with pytest.raises(BadRows) as e: load_data('text', path, checkpoint=ckpt, lazy=True)
    assert list(e.value.problems.row)==['rows.parquet row 5','rows.parquet row 8','rows.parquet row 31']
    dls = load_data('text', path, checkpoint=ckpt, lazy=True, bad='skip')
    assert len(dls.sft.rows)==len(rows)-3 and is_lazy(dls.sft.rows.text)

def test_large_sources_are_lazy_by_themselves(tmp_path, monkeypatch):
    path,ckpt = texts(tmp_path, 2)
    assert not is_lazy(read_rows(path, 'text').text)
    monkeypatch.setattr('sft_nb.data.rows.LAZY_BYTES', 10)
    assert is_lazy(read_rows(path, 'text').text)
    with pytest.raises(DataError, match='lazy=True needs a Parquet file or a Dataset'): load_data('text', pd.read_parquet(path), checkpoint=ckpt, lazy=True)

def test_a_column_goes_to_another_process(tmp_path):
    path,_ = texts(tmp_path, 2)
    cells = read_rows(path, 'text', lazy=True).text.array[2:5]
    assert list(pickle.loads(pickle.dumps(cells)))==list(cells) and len(pickle.dumps(cells))<5000
    ds = Dataset.from_parquet(str(path), cache_dir=str(tmp_path/'hf'))
    cells = read_rows(ds, 'text', lazy=True).text.array[2:5]
    assert list(pickle.loads(pickle.dumps(cells)))==list(cells)

def torn(path, column):
    "A table whose third cell of a column is not UTF-8"
    pq.write_table(pa.table(dict(text=['fine','warm','odd'], label=['a','b','odd'], stars=[1,2,3])), path, use_dictionary=False, compression='none')
    data = path.read_bytes()
    at = [i for i in range(len(data)) if data.startswith(b'\x03\0\0\0odd', i)][column=='label']
    path.write_bytes(data[:at+4]+b'\xff'+data[at+5:])
    return path

@pytest.mark.parametrize('column', ['text','label'])
@pytest.mark.parametrize('lazy', [False,True], ids=['whole','lazy'])
def test_a_cell_that_is_not_utf8_names_its_file(tmp_path, lazy, column):
    path = torn(tmp_path/'notes.parquet', column)
    with pytest.raises(DataError, match=r'notes\.parquet') as e: list(read_rows(path, 'text', lazy=lazy)[column])
    assert f'column {column!r}' in str(e.value) and 'is not UTF-8 text' in str(e.value)

def test_a_file_that_is_read_part_by_part_is_named(tmp_path):
    path,ckpt = texts(tmp_path, 1)
    model = sft_learner(load_data('text', path, checkpoint=ckpt))
    model = load_predictor(save_predictor(model, tmp_path/'model', metrics={}), device='cpu')
    with pytest.raises(DataError, match=r'notes\.parquet'): list(model.stream(torn(tmp_path/'notes.parquet', 'text')))
    pd.DataFrame(dict(text=['fine',None])).to_parquet(tmp_path/'open.parquet')
    with pytest.raises(BadRows, match=r'1 problem in open\.parquet:\n.*empty text'): list(model.stream(tmp_path/'open.parquet'))

def test_unpacked_tables_are_removed(tmp_path):
    path,_ = texts(tmp_path, 2)
    read_rows(path, 'text', lazy=True)
    assert list((tmp_path/'home'/'rows').glob('*.arrow'))
    clear_cache()
    assert not (tmp_path/'home'/'rows').exists()

# One predictor, many threads

@pytest.mark.parametrize('task', ['text','image'])
def test_threads_get_what_one_gets(tmp_path, task):
    toy = make_toy(task, tmp_path/'toy')
    learn = sft_learner(load_data(task, toy['source'], checkpoint=toy['checkpoint'], pretrained=toy['pretrained'], **toy['load']), freeze=None)
    model = load_predictor(save_predictor(learn, tmp_path/'model', metrics={}), device='cpu')
    items = list(learn.spec.rows[learn.spec.task.input_columns[0]])
    jobs = [items[i:i+1+i%5] for i in range(len(items)-5)]*4
    want = [model.predict_proba(o, batch_size=2) for o in jobs]
    go = threading.Barrier(8)
    def work(k):
        go.wait()
        return [(i, model.predict_proba(jobs[i], batch_size=2)) for i in range(k, len(jobs), 8)]
    with ThreadPoolExecutor(8) as pool: found = dict(o for part in pool.map(work, range(8)) for o in part)
    assert len(found)==len(jobs)
    for i,o in enumerate(want): pd.testing.assert_frame_equal(found[i], o, atol=1e-6, rtol=0)
    assert not model.model.training
