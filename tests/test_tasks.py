"What every task promises. The tests know tasks by `all_tasks()` and their toy data by `make_toy(task, folder)`, and none by name"
import random, subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from fastai.optimizer import SGD
from sft_nb.core.basics import DataError
from sft_nb.data.task import all_tasks
from sft_nb.data.load import load_data
from sft_nb.training.learner import layer_table, sft_learner
from sft_nb.training.cache_store import cache_info
from sft_nb.training.cache import frozen_cache
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.tasks.toys import make_toy

TASKS = all_tasks()
TASKS.update({f'{n}, number':t.with_target('number') for n,t in all_tasks().items() if 'number' in [o.kind for o in t.other_targets]})

@pytest.fixture(params=TASKS)
def task(request):
    task = TASKS[request.param]
    if task.missing(): pytest.skip(f"{task.name} needs {', '.join(task.missing())}")
    return task

class Toy:
    "The tiny data and model of a task"
    def __init__(self, task, folder): self.task,self.folder,self.kw,self.columns = task,folder,make_toy(task, folder),list(task.columns[:-1])
    def data(self, **load):
        kw = dict(checkpoint=self.kw["checkpoint"], pretrained=self.kw.get("pretrained", True))
        return load_data(self.task, self.kw["source"], **kw, **{**self.kw["load"], **load})
    def learner(self, load=None, **kw):
        learn = sft_learner(self.data(**(load or {})), **kw)
        for cb in [o for o in learn.cbs if type(o).__name__=='ProgressCallback']: learn.remove_cb(cb)
        learn.logger = lambda *_: None
        for m in learn.model.modules():
            if isinstance(m, torch.nn.modules.dropout._DropoutNd): m.p = 0.
        return learn

@pytest.fixture
def toy(task, tmp_path, home, one_thread): return Toy(task, tmp_path/'toy')

def state(model): return {k:v.detach().clone() for k,v in model.state_dict().items()}
def apart(a, b): return max(((a[k].double()-b[k].double()).abs().max().item() for k in a if a[k].numel()), default=0)
def same(got, want): return np.allclose(got, want, rtol=1e-5, atol=1e-6) if pd.api.types.is_numeric_dtype(want) else got.tolist()==want.tolist()
def inputs(learn): return learn.dls.valid.one_batch()[:learn.dls.n_inp]
def flat(h): return [t for v in h.values() for t in flat(v)] if isinstance(h, dict) else [h]

def test_parameters_stand_in_one_group(toy):
    m = toy.learner().model
    held = [n for ns in m.groups.values() for n in ns]
    assert sorted(held)==sorted(n for n,_ in m.named_parameters())
    assert len(m.groups)>1 and list(m.groups)[-1]=='head' and all(m.groups.values())

def test_table_tells_the_counts(toy):
    learn = toy.learner(freeze=None)
    t = layer_table(learn)
    assert list(t.columns)==['group','layers','parameters','trainable','lr','mode','cached']
    assert t.parameters.sum()==t.trainable.sum()==sum(p.numel() for p in learn.model.parameters())
    learn.freeze()
    t = layer_table(learn)
    assert (t.trainable[:-1]==0).all() and t.trainable.iloc[-1]==t.parameters.iloc[-1]>0 and set(t['mode'][:-1])=={'eval'}

FREEZES = ['body', 1, -2, dict(rule='bias'), dict(rule='norm')]

@pytest.mark.parametrize('opt', ['adam', 'sgd'])
@pytest.mark.parametrize('freeze', FREEZES, ids=str)
def test_frozen_is_bit_identical(toy, freeze, opt):
    kw = dict(opt_func=lambda p, lr, **k: SGD(p, lr, mom=.9, **k)) if opt=='sgd' else {}
    learn = toy.learner(freeze=None, wd=.1, **kw)
    learn.fit(1, 1e-3)
    learn.freeze() if freeze=='body' else learn.freeze_to(**freeze) if isinstance(freeze, dict) else learn.freeze_to(freeze)
    m,was = learn.model,state(learn.model)
    learn.fit(2, 1e-2)
    still = {n for n,p in m.named_parameters() if not p.requires_grad}
    mods = dict(m.named_modules())
    for n,_ in m.named_buffers():
        own = list(mods[n.rpartition('.')[0]].parameters(recurse=False))
        if own and not all(p.requires_grad for p in own): still.add(n)
    now = m.state_dict()
    assert still and [n for n in still if n in was and not torch.equal(was[n], now[n])]==[]
    assert any(not torch.equal(was[n], now[n]) for n,p in m.named_parameters() if p.requires_grad)

@pytest.mark.parametrize('freeze', FREEZES, ids=str)
def test_frozen_modules_stay_in_eval_mode(toy, freeze):
    learn = toy.learner(freeze=freeze)
    m = learn.model.train()
    for n,mod in m.named_modules():
        ps = list(mod.parameters())
        if ps and not any(p.requires_grad for p in ps): assert not any(o.training for o in mod.modules()), n
        own = list(mod.parameters(recurse=False))
        if own and all(p.requires_grad for p in own): assert mod.training, n
    learn.model.eval()
    assert not any(o.training for o in m.modules())

def test_pieces_give_the_whole(toy):
    learn = toy.learner(freeze=None)
    m,x = learn.model,inputs(learn)
    assert m.borders(), 'no place to cache at'
    with torch.no_grad():
        want = m.eval()(*x)
        for b in m.borders(): assert torch.allclose(m.suffix(b, m.prefix(b, *x)), want, atol=1e-5), b
        for b in m.borders():
            learn.freeze_to(b)
            h = [m.train(mode).prefix(b, *x) for mode in (False,True)]
            assert all(torch.equal(*o) for o in zip(*map(flat, h))), b

def test_overfits_eight_items(toy):
    learn = toy.learner(dict(max_items=10, valid=.2), freeze=None)
    n,metric = (learn.spec.rows.split=='train').sum(), toy.task.metric
    assert 6<=n<=9
    before = evaluate(learn, 'train').metrics[metric]
    learn.validate(0)
    for _ in range(8):
        learn.fit(10, 2e-3, wd=0.)
        after = evaluate(learn, 'train').metrics[metric]
        if toy.task.classes and after==1: return
        if not toy.task.classes and learn.recorder.log[1]<.05: break
    assert not toy.task.classes, f'{metric} of the training items is {after}'
    assert after>before if toy.task.maximize else after<before

@pytest.mark.parametrize('place', ['head', 'lowest'])
def test_cached_training_equals_live(toy, place):
    def run(cached):
        learn = toy.learner(freeze=None)
        learn.freeze_to(learn.model.borders()[-1 if place=='head' else 0])
        if cached:
            with frozen_cache(learn): learn.fit(2, 1e-3)
            assert learn.cached_groups and len(cache_info())==2
        else: learn.fit(2, 1e-3)
        return state(learn.model), np.array(learn.recorder.values, dtype=float)
    (live,lv),(cached,cv) = run(False),run(True)
    assert apart(live, cached)<1e-5
    assert np.allclose(lv, cv, atol=1e-4, equal_nan=True)

def test_predicts_while_cached(toy):
    learn = toy.learner()
    want = evaluate(learn).rows.prediction.tolist()
    with frozen_cache(learn):
        learn.fit(0)
        assert evaluate(learn).rows.prediction.tolist()==want
        learn.validate()

NEW = '''
import sys, pandas as pd, torch
torch.load = None
torch.set_num_threads(1)
from sft_nb.deployment.predictor import load_predictor
load_predictor(sys.argv[1]).predict(pd.read_parquet(sys.argv[2])).to_json(sys.argv[3], orient='records', double_precision=15)
'''

def test_equal_in_a_new_process(toy, tmp_path):
    learn = toy.learner(freeze=None)
    learn.fit(1, 1e-3)
    save_predictor(learn, tmp_path/'model')
    rows = evaluate(learn).rows
    rows[toy.columns].to_parquet(tmp_path/'items.parquet')
    subprocess.run([sys.executable, '-c', NEW, tmp_path/'model', tmp_path/'items.parquet', tmp_path/'out.json'], check=True)
    there,here = pd.read_json(tmp_path/'out.json', dtype=False),load_predictor(tmp_path/'model').predict(rows[toy.columns])
    for got in (there,here):
        assert same(got.prediction, rows.prediction)
        assert np.allclose(got.probability.astype(float), rows.probability, atol=1e-5, equal_nan=True)

def test_bad_row_is_named(toy):
    words = toy.kw['bad']()
    with pytest.raises(DataError) as e: toy.data()
    for w in [words] if isinstance(words, str) else words: assert w in str(e.value)
    dls = toy.data(bad='skip')
    assert len(dls.sft.skipped) and not set(dls.sft.skipped['item']) & set(dls.sft.rows['item'])

def rng_states(): return str(random.getstate()),str(np.random.get_state()),torch.get_rng_state().tolist()

@pytest.mark.parametrize('fitted', [False, True])
def test_lr_find_changes_nothing(toy, fitted):
    def run(find):
        learn = toy.learner(freeze=1)
        if fitted: learn.fit(1, 1e-3)
        was,rng,on = state(learn.model),rng_states(),[p.requires_grad for p in learn.model.parameters()]
        if find:
            learn.lr_find(num_it=6, show_plot=False)
            assert apart(was, state(learn.model))==0 and rng_states()==rng
            assert on==[p.requires_grad for p in learn.model.parameters()] and len(learn.history)==fitted
        learn.fit(1, 1e-3)
        return state(learn.model)
    assert apart(run(False), run(True))==0

def test_unfreezing_after_the_optimizer_trains(toy):
    learn = toy.learner()
    learn.fit(1, 1e-3)
    was = state(learn.model)
    learn.unfreeze()
    learn.fit(1, 1e-2)
    now = learn.model.state_dict()
    for g,ns in learn.model.groups.items(): assert any(not torch.equal(was[n], now[n]) for n in ns), g

def test_same_seed_same_weights(toy):
    def run(seed, disturb):
        torch.manual_seed(disturb)
        learn = toy.learner(seed=seed)
        random.seed(disturb)
        np.random.seed(disturb)
        learn.fit(1, 1e-2)
        learn.unfreeze()
        torch.rand(disturb)
        learn.fit(1, slice(1e-4,1e-2))
        return state(learn.model)
    a = run(7, 1)
    assert apart(a, run(7, 2))==0 and apart(a, run(8, 1))>0

def test_schedules_run(toy):
    learn = toy.learner()
    learn.fit_head(1)
    learn.fine_tune(1)
    learn.gradual_unfreeze(1, stages=2)
    assert len(learn.history)>=5 and all(np.isfinite(r['train_loss']) for r in learn.history)

def test_fastai_doors(toy):
    learn = toy.learner()
    preds,targs = learn.get_preds()
    assert len(preds)==len(targs)==(learn.spec.rows.split=='valid').sum()
    assert len(learn.validate())==1+len(learn.metrics)
