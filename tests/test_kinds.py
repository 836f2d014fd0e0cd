"What an input is and what a target is stands in one place: nobody else asks, and another kind costs one class"
import re
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from fastai.losses import MSELossFlat
from sft_nb.core.basics import TaskError
from sft_nb.core.metrics import SumScores
from sft_nb.data.kinds import AudioInput, ClassTarget, ImageInput, InputKind, TargetKind, TextInput, TextTarget
from sft_nb.data.load import load_data
from sft_nb.data.task import all_tasks, get_task, register
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.tasks.toys import make_toy
from sft_nb.training.cache import frozen_cache
from sft_nb.training.learner import sft_learner
from test_house import MODULES

KINDS = 'image|audio|text|source|speech|translation|image_text'
# Modules of one modality or of one kind of target; the networks; which tasks a checkpoint is for
OWN = {'data.kinds', 'data.images', 'data.texts', 'data.sounds', 'data.sound_classes', 'data.speech', 'data.translation', 'data.image_text', 'data.token_targets', 'data.class_targets'}
OWN_FOLDERS = ('tasks.', 'models.', 'checkpoints.')
ASKS = re.compile(rf"""\b(task|target)\.(classes|sequence)\b|\btask\.(decode|score|parts)\b(?!\()|FILE_COLUMNS|isinstance\([^()]*\b({'|'.join(o.__name__ for o in
    (AudioInput, ClassTarget, ImageInput, TextInput, TextTarget))})\b|['"]({KINDS})['"]\s+(not\s+)?in\b|[=!]=\s*\(?['"]({KINDS})['"]|\bin\s*\(['"]({KINDS})['"]
    |\b(rows?|r|frame)(\.get\(|\[)['"](image|audio|text|source)['"]|\b(rows|row|r|frame)\.(image|audio|text|source)\b""", re.X)
# What the public attribute of a task returns; the name of a filter, of a kind of list, of an attribute of a loader
OTHERWISE = {'data.task': 'return self.target.classes', 'inspection.inspector': "k=='text'", 'inspection.selection': "k=='text'", 'data.labels': "kind=='text'",
             'training.learner': "'source' in vars(dl)", 'training.resume_state': "'source' in vars(dl)"}

def asked(module, text):
    lines = [l for l in text.splitlines() if ASKS.search(re.sub(r'#.*', '', l)) and not l.strip().startswith(('"', '#'))]
    return [l for l in lines if OTHERWISE.get(module, '\0') not in l]

def test_nobody_asks_which_kind_it_is():
    for line in ("if task.classes: pass", "x = 'image' in rows", "if k=='audio': y", "row['image']", "isinstance(k, TextInput)", "rows.source.str"): assert asked('x', line), line
    for line in ("task.target.need_classes(task, '')", "task.decode(spec, o)", "k.pictured", "# 'image' in rows"): assert not asked('x', line), line
    mine = {m:p for m,p in MODULES.items() if m not in OWN and not m.startswith(OWN_FOLDERS)}
    assert len(mine)>50
    assert {m:found for m,p in mine.items() if (found := asked(m, p.read_text(encoding='utf8')))}=={}

def test_a_kind_that_says_nothing_has_answers():
    k,cells = InputKind('echo'),pd.Series(['a','b'])
    assert (k.problems(cells, None), k.length(cells, None), k.measures('a'), k.fingerprint('a'), k.picture('a', 9), k.words('a'), k.storable('a'))==([None,None], None, {}, {}, 'a', '', 'a')
    t = TargetKind('stars')
    assert (t.read([1,None,' ']), t.flat(cells, False), t.vocab(cells, False), t.codes(cells, None), t.tables(None), t.pictures(None))==(([1,None,None],False), [], [], None, {}, {})
    for f in (lambda: t.loss(None), lambda: t.encode(cells, None), lambda: t.scores(None), lambda: t.decode(None, None)):
        with pytest.raises(TaskError, match='TargetKind .*Give it'): f()

def test_columns_follow_from_the_kinds():
    assert {t.name:t.columns for t in all_tasks().values() if t.name in ('image','text','image_text','translation','speech')}==dict(image=('image','label'), text=('text','label'),
        image_text=('image','text','label'), translation=('source','target'), speech=('audio','text'))
    assert get_task('image').copy(target=ClassTarget('kind'), inputs=(ImageInput('photo'),)).columns==('photo','kind') and get_task('image').columns==('image','label')

class Number(TargetKind):
    "A number, in the scale of the training rows"
    column,lower = 'stars',('mae',)
    def problems(self, cells, spec): return [None if isinstance(o, (int,float)) else f'{self.column} {o!r} is not a number' for o in cells]
    def outputs(self, spec): return 1
    def encode(self, cells, spec): return torch.tensor([[float(o)] for o in cells])
    def loss(self, spec, loss=None, label_smoothing=0., class_weights=None): return MSELossFlat()
    def decode(self, outputs, spec): return pd.DataFrame(dict(prediction=outputs[:,0].double().cpu().numpy(), probability=np.nan))
    def scores(self, ev): return SumScores(np.column_stack([(ev.rows.target-ev.rows.prediction).abs(), np.ones(len(ev.rows))]), lambda o: dict(mae=o[0]/o[1]))
    def constant(self, train, rows, spec): return self._said(np.full(len(rows), train.mean()), rows)
    def fitted(self, x, train, new, rows, spec):
        from sklearn.linear_model import Ridge
        return self._said(Ridge().fit(x, train.astype(float)).predict(new), rows)
    def _said(self, said, rows): return dict(prediction=said, probability=np.nan, loss=(said-rows.target)**2, correct=False),None

@pytest.fixture
def rating(tmp_path, home):
    "The toy of texts with a number in the place of its class"
    from sft_nb.data import task as tasks
    toy = make_toy('text', tmp_path/'toy')
    rows = pd.read_csv(toy['source'])
    frame = pd.DataFrame(dict(text=rows.text, stars=[float(len(o)%7)+(l=='good') for o,l in zip(rows.text, rows.label)]))
    register(get_task('text').copy(name='rating', target=Number(), metric='mae', maximize=False))
    yield load_data('rating', frame, checkpoint=toy['checkpoint'], valid=.25),frame
    tasks._tasks.pop('rating')

def test_another_target_costs_one_class(rating, tmp_path):
    dls,frame = rating
    learn = sft_learner(dls)
    with learn.no_bar(), learn.no_logging():
        learn.fit_head(30, 3e-2)
        with frozen_cache(learn): learn.fit(1)
    ev = evaluate(learn)
    assert list(ev.metrics)==['mae'] and ev.report().low[0]<=ev.metrics['mae']<=ev.report().high[0] and dls.sft.vocab==[]
    assert list(ev.baselines(['majority','words']))==['majority','words'] and set(ev.compare('majority').verdict)<={'better','worse','no difference shown'}
    with pytest.raises(TaskError, match='has no classes'): ev.confusion()
    page = ev.to_html(tmp_path/'page.html').read_text()
    assert 'Confusion' not in page and 'f-target' not in page.split('<script')[0]
    model = load_predictor(save_predictor(learn, tmp_path/'model'))
    assert np.allclose(model.predict(list(ev.rows.text)).prediction, ev.rows.prediction, atol=1e-5)
    with pytest.raises(TaskError, match='has no classes'): model.predict_proba(['fine'])

def test_its_bad_cells_are_named(rating):
    from sft_nb.core.basics import DataError
    _,frame = rating
    odd = frame.assign(stars=frame.stars.astype(object).where(frame.index!=2, 'many'))
    with pytest.raises(DataError, match="stars 'many' is not a number"): load_data('rating', odd, checkpoint='timm:test_resnet', pretrained=False)

def test_sounds_have_answers_where_the_target_is_a_class(tmp_path):
    "The way of the data for a task of sounds and classes: folders, problems, lengths, measures, baselines"
    sf = pytest.importorskip('soundfile')
    from sft_nb.data.load import row_problems
    from sft_nb.data.rows import read_rows
    from sft_nb.data.task import Task
    from sft_nb.diagnosis.baselines import baseline_names
    from sft_nb.evaluation.slices import item_measures
    for i,kind in enumerate(('high','low')):
        (tmp_path/kind).mkdir()
        for j in range(2): sf.write(tmp_path/kind/f'{j}.wav', np.sin(np.arange(4000+800*j)*(.3-.1*i)).astype(np.float32), 8000)
    (tmp_path/'low'/'odd.wav').write_bytes(b'no sound')
    task = Task(name='heard', inputs=(AudioInput(),), target=ClassTarget())
    rows = read_rows(tmp_path, task)
    assert rows.label.tolist()==['high','high','low','low','low'] and task.columns==('audio','label')
    spec = SimpleNamespace(task=task, multi_label=False, preprocess={}, options={})
    assert list(row_problems(rows, spec))==[4]
    good = rows[:4]
    assert task.lengths(spec, good)==pytest.approx([.5,.6,.5,.6]) and item_measures(good, task).duration.tolist()==pytest.approx([.5,.6,.5,.6])
    assert baseline_names(task)==['majority','untuned']
