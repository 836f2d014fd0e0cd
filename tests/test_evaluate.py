"Evaluation: against scikit-learn and a plain bootstrap, over splits, other data and fastai's own loaders"
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, multilabel_confusion_matrix, precision_recall_fscore_support
from sft_nb.core.basics import DataError, TaskError
from sft_nb.core.metrics import SumScores
from sft_nb.data.kinds import TargetKind
from sft_nb.data import images
from sft_nb.data.problems import BadRows
from sft_nb.data.task import get_task
from sft_nb.data.rows import read_rows
from sft_nb.data.load import load_data
from sft_nb.training.learner import sft_learner
from sft_nb.evaluation.results import Evaluation
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.tasks.toys import make_toy

def learner(folder, rows=None, **kw):
    toy = make_toy('image', folder)
    dls = load_data('image', toy['source'] if rows is None else rows(folder), checkpoint=toy['checkpoint'], pretrained=False, **{**toy['load'], **kw})
    return sft_learner(dls)

def modes(model): return [m.training for m in model.modules()]

def table(n=400, classes=4, seed=0, **cols):
    rng = np.random.default_rng(seed)
    t = rng.integers(classes, size=n)
    p = np.where(rng.random(n)<.7, t, rng.integers(classes, size=n))
    return pd.DataFrame(dict(item=range(n), target=[f'c{o}' for o in t], prediction=[f'c{o}' for o in p], probability=.5, loss=1., correct=t==p, **cols))

def names(n): return [f'c{i}' for i in range(n)]

@pytest.fixture(scope='module')
def learn(tmp_path_factory): return learner(tmp_path_factory.mktemp('shapes'))

def test_rows_and_metrics(learn):
    "Rows stand in the order of the data; metrics and loss are those of fastai's validation"
    learn.model.train()
    before,state = modes(learn.model),{k:v.clone() for k,v in learn.model.state_dict().items()}
    ev = evaluate(learn, batch_size=3)
    assert modes(learn.model)==before and all(torch.equal(v, state[k]) for k,v in learn.model.state_dict().items())
    valid = learn.spec.split('valid')
    assert list(ev.rows.item)==list(valid.item) and list(ev.rows.target)==list(valid.label)
    assert list(ev.rows.columns)==['item','image','target','prediction','probability','loss','correct']
    with learn.no_bar(): loss,*scores = learn.validate()
    assert np.allclose([ev.rows.loss.mean(), *ev.metrics.values()], [loss,*scores], atol=1e-5)
    assert list(ev.metrics)==['accuracy','precision','recall','f1']
    assert np.allclose(ev.probabilities.max(1), ev.rows.probability, atol=1e-6) and np.allclose(ev.probabilities.sum(1), 1, atol=1e-6)
    assert evaluate(learn, keep=False).probabilities is None
    assert 'accuracy' in repr(ev) and '4 rows' in repr(ev)

def test_splits(learn, tmp_path):
    with pytest.raises(DataError, match="no test rows. Valid: 'train', 'valid'"): evaluate(learn, on='test')
    assert len(evaluate(learn, on='train'))==12
    def split(folder):
        rows = read_rows(folder, 'image')
        return rows[['image','label']].assign(split=['test' if i%4==0 else 'valid' if i%4==1 else 'train' for i in range(len(rows))])
    tested = learner(tmp_path, split)
    assert len(evaluate(tested, on='test'))==4 and set(evaluate(tested, on='test').rows.item).isdisjoint(evaluate(tested).rows.item)

def test_other_data(learn, tmp_path):
    make_toy('image', tmp_path/'more')
    assert len(evaluate(learn, on=tmp_path/'more'))==16
    rows = pd.DataFrame(dict(picture=[str(o) for o in sorted((tmp_path/'more').rglob('*.png'))], kind='round'))
    assert len(evaluate(learn, on=rows, input='picture', target='kind'))==16
    (tmp_path/'more'/'round'/'0.png').write_bytes(b'no picture')
    (tmp_path/'more'/'oval').mkdir()
    (tmp_path/'more'/'square'/'1.png').rename(tmp_path/'more'/'oval'/'1.png')
    with pytest.raises(DataError) as e: evaluate(learn, on=tmp_path/'more')
    assert '0.png: not a picture' in str(e.value) and "'oval' is not a class of the model" in str(e.value)
    assert len(evaluate(learn, on=tmp_path/'more', bad='skip'))==14
    with pytest.raises(DataError, match='is missing'): evaluate(learn, on=tmp_path/'nowhere')
    with pytest.raises(TaskError, match='must be a learner'): evaluate(learn.dls)

def test_fastai_loaders(tmp_path):
    "DataLoaders made by plain fastai have a validation side to evaluate"
    from fastai.vision.data import ImageDataLoaders
    from fastai.vision.augment import Resize
    make_toy('image', tmp_path)
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=.25, seed=1, item_tfms=Resize(64), bs=4, num_workers=0)
    own = sft_learner(dls, checkpoint='timm:test_resnet', pretrained=False)
    ev = evaluate(own)
    assert len(ev)==4 and [Path(o).parent.name for o in ev.rows.item]==list(ev.rows.target)
    with own.no_bar(): assert np.isclose(own.validate()[1], ev.metrics['accuracy'])

def test_intervals_are_those_of_a_plain_bootstrap():
    ev = Evaluation(table(), get_task('image'), names(5))
    report,rng = ev.report(draws=2000).set_index('metric'),np.random.default_rng(1)
    draws = [ev.rows.iloc[rng.integers(len(ev), size=len(ev))] for _ in range(1000)]
    for k,score in dict(accuracy=accuracy_score, f1=lambda t,p: f1_score(t, p, average='macro')).items():
        low,high = np.percentile([score(d.target, d.prediction) for d in draws], [2.5,97.5])
        assert np.isclose(report.low[k], low, atol=.01) and np.isclose(report.high[k], high, atol=.01)
        assert report.low[k]<report.value[k]<report.high[k]
    assert ev.report().equals(ev.report())

def test_by_class_and_confusion():
    ev = Evaluation(table(), get_task('image'), names(5))
    p,r,f,n = precision_recall_fscore_support(ev.rows.target, ev.rows.prediction, labels=names(5), zero_division=0)
    each = ev.report(by_class=True)
    assert np.allclose(each[['precision','recall','f1','support']].to_numpy(), np.column_stack([p,r,f,n])) and (each.high>=each.low).all()
    assert (ev.confusion().to_numpy()==confusion_matrix(ev.rows.target, ev.rows.prediction, labels=names(5))).all()

def test_several_labels():
    rng = np.random.default_rng(0)
    t,p = rng.random((300,4))<.4, rng.random((300,4))<.5
    lists = [[[f'c{j}' for j in np.flatnonzero(o)] for o in x] for x in (t,p)]
    rows = pd.DataFrame(dict(item=range(300), target=lists[0], prediction=lists[1]))
    ev = Evaluation(rows, get_task('image'), names(4), multi_label=True)
    want = precision_recall_fscore_support(t, p, average='macro', zero_division=0)[:3]
    assert np.allclose(list(ev.metrics.values()), [(t==p).all(1).mean(), *want])
    assert (ev.confusion().to_numpy()==multilabel_confusion_matrix(t, p).reshape(4, 4)).all()
    report = ev.report()
    assert ((report.low<=report.value) & (report.value<=report.high)).all()

def test_groups_widen_the_interval():
    rows = pd.concat([table(200).assign(group=range(200))]*10, ignore_index=True)
    def width(r): return Evaluation(r, get_task('image'), names(4)).report().set_index('metric').eval('high-low')['accuracy']
    assert width(rows)>2.5*width(rows.drop(columns='group'))
    assert width(rows.assign(group=None))==pytest.approx(width(rows.drop(columns='group')), rel=.15)

def test_many_rows_and_classes():
    "100,000 rows and 1,000 classes: no square of either is held in memory"
    ev = Evaluation(table(100_000, 1000), get_task('image'), names(1000))
    assert list(ev.report(draws=20).metric)[:5]==['accuracy','precision','recall','f1','balanced_accuracy']

def test_sequence_task():
    "A task without classes brings its own metrics; intervals come from sums over its rows"
    class Share(TargetKind):
        def scores(self, ev): return SumScores(np.column_stack([ev.rows.target==ev.rows.prediction, np.ones(len(ev.rows))]), lambda o: dict(share=o[0]/o[1]))
    task = get_task('image').copy(target=Share(), metric='share')
    ev = Evaluation(table().assign(loss=np.nan), task)
    assert list(ev.metrics)==['share'] and ev.report().low[0]<ev.metrics['share']<ev.report().high[0]
    assert not ev.worst(5).correct.any()
    for f in (ev.confusion, lambda: ev.report(by_class=True)):
        with pytest.raises(TaskError, match='no classes'): f()

def test_plots(learn):
    "Names out of the data are text, never a formula"
    import matplotlib
    matplotlib.use('agg')
    ev = evaluate(learn)
    ev.rows['prediction'] = '$x_{'
    ev.vocab = [*ev.vocab, '$x_{']
    ev.confusion(plot=True)
    fig = ev.show_worst(2)
    fig.canvas.draw()
    assert ev.worst(2).loss.is_monotonic_decreasing and len(fig.axes)==3

def test_pictures_of_other_data_are_read_once(tmp_path, monkeypatch):
    "…and where some cannot be read, all of those are named"
    toy = make_toy('image', tmp_path/'toy')
    learn = sft_learner(load_data('image', toy['source'], checkpoint=toy['checkpoint'], pretrained=False, **toy['load']))
    reads,read = [],images.read_picture
    monkeypatch.setattr(images, 'read_picture', lambda *a, **kw: (reads.append(1), read(*a, **kw))[1])
    n = len(evaluate(learn, toy['source']))
    assert n<=len(reads)<=n+1
    files = sorted(Path(toy['source']).rglob('*.png'))
    for f in (files[3], files[5]): f.write_bytes(b'no picture')
    with pytest.raises(BadRows, match='2 problems') as e: evaluate(learn, toy['source'])
    assert all(f.name in str(e.value) for f in (files[3], files[5]))
    assert len(evaluate(learn, toy['source'], bad='skip'))==n-2
