"A fit under FSDP2 is that of one process: same curve and weights, a plain model around it; what does not work on spread weights is refused in words"
import json, os
from functools import partial
from pathlib import Path
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import LRFinder
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.optimizer import Lamb, Larc, OptimWrapper, SGD
from safetensors.torch import load_file, save_file
from torch import nn
from shared import curve, well
from sft_nb.core.basics import FitError, process_rank
from sft_nb.core.processes import is_spread, own_share
from sft_nb.models.model import SFTModel
from sft_nb.training.callbacks import Accumulate, Autocast, has_bfloat16, keep_weights, KeepBest, L2SP, wise_ft
from sft_nb.training.learner import SFTLearner

pytestmark = pytest.mark.usefixtures('home', 'one_thread')
FSDP = dict(ACCELERATE_USE_FSDP='true', FSDP_VERSION='2')

class Layers(nn.Module):
    "Layers that every row runs, a branch that some rows run, a tied pair, and an odd width: no weight can be cut evenly"
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(2))
        self.side,self.tied,self.idle = nn.Linear(5, 5),nn.Linear(5, 5, bias=False),nn.Linear(5, 5)
        self.idle.weight = self.tied.weight
    def forward(self, x):
        for m in self.layers: x = m(x)
        h,has = self.tied(x),x[:,0]>0
        return h.index_put((has.nonzero()[:,0],), h[has]+self.side(x[has])) if has.any() else h

class Net(SFTModel):
    def stages(self): return []

def learner(rows=19, bs=4, **kwargs):
    torch.manual_seed(3)
    net,head = Layers(),nn.Linear(5, 3)
    names = [n for n,_ in net.named_parameters()]
    groups = {k:[f'net.{n}' for n in names if n.startswith(k)] for k in ('layers.0','layers.1','side','tied','idle')}
    model = Net(net, {**{k:v for k,v in groups.items() if v}, 'head':['head.weight','head.bias']}, head)
    g = torch.Generator().manual_seed(0)
    items = list(zip(torch.randn(rows, 5, generator=g), torch.randint(0, 3, (rows,), generator=g)))
    learn = SFTLearner(DataLoaders(DataLoader(items, bs=bs), DataLoader(items, bs=bs), device='cpu'), model, loss_func=nn.CrossEntropyLoss(), wd=.1, **kwargs)
    learn.logger = lambda *_: None
    return learn.unfreeze()

class Shares(Callback):
    "How many numbers a process has of the weights and of the optimizer's state, in each fit"
    def __init__(self): self.seen = []
    def after_fit(self):
        params = [p for ps in self.opt.param_lists for p in ps]
        state = [v for p in params for v in self.opt.state[p].values() if isinstance(v, torch.Tensor) and v.ndim]
        self.seen.append([all(map(is_spread, params)), *(sum(own_share(o).numel() for o in os) for os in (params, state))])

def leave(out, learn, **found):
    found['history'] = [[h[k] for k in ('train_loss','valid_loss')] for h in learn.history]
    found['plain'] = not any(map(is_spread, learn.model.parameters())) and type(learn.model) is Net and learn.model.net.idle.weight is learn.model.net.tied.weight
    save_file({k:v.clone().contiguous() for k,v in learn.model.state_dict().items()}, f'{out}-{process_rank()}.safetensors')
    Path(f'{out}-{process_rank()}.json').write_text(json.dumps(found))

def job(out):
    "Several fits of one learner, the state of whose optimizer goes from one to the next"
    learn,shares = learner(),Shares()
    model,names = learn.model,list(learn.model.state_dict())
    with learn.no_bar():
        learn.freeze_to('head').fit(1, 1e-2)
        learn.unfreeze().add_cb(shares)
        learn.fit(2, 1e-2, cbs=GradientClip(.5))
        learn.fit(1, 1e-2, cbs=Accumulate(8))
        keep_weights(learn)
        learn.fit(3, .5, cbs=KeepBest('valid_loss'))
        wise_ft(learn, .5)
        if has_bfloat16(): learn.fit(1, 0., wd=0., cbs=Autocast())
    assert learn.model is model and list(model.state_dict())==names and model.in_parts
    leave(out, learn, shares=shares.seen)

def optimizers(out):
    "SGD, an optimizer of torch, and two that take the norm of a whole weight"
    for o in (partial(SGD, mom=.9), partial(OptimWrapper, opt=torch.optim.AdamW), Lamb, Larc):
        learn = learner(opt_func=o)
        with learn.no_bar():
            learn.fit(2, 1e-2)
            learn.fit(1, 1e-2)
    leave(out, learn)

def ran(shared, out, n, f, **env):
    def inner():
        os.environ.update(env)
        f(out)
    codes,_ = shared.launched(n, out, inner)
    said = [Path(f'{out}-{r}.err').read_text() for r in range(n)]
    assert not any(codes), '\n'.join(said)
    return [json.loads(Path(f'{out}-{r}.json').read_text()) for r in range(n)],[load_file(f'{out}-{r}.safetensors') for r in range(n)]

@pytest.mark.parametrize('n,f', [(2, job), (4, job), (3, optimizers)])
def test_a_fit_is_that_of_one_process(shared, tmp_path, n, f):
    (one,),(weights,) = ran(shared, tmp_path/'one', 1, f)
    found,all_weights = ran(shared, tmp_path/'all', n, f, **FSDP)
    for o,w in zip(found, all_weights):
        assert np.abs(np.array(o['history'])-np.array(one['history'])).max()<1e-5 and len(o['history'])==len(one['history'])
        assert w.keys()==weights.keys() and max((w[k]-weights[k]).abs().max().item() for k in w)<1e-5
        assert all(torch.equal(w[k], all_weights[0][k]) for k in w) and o['plain'] and one['plain']
    for fit,seen in enumerate(one.get('shares', ())):
        own = [o['shares'][fit] for o in found]
        assert all(o[0] for o in own) and [sum(o[i] for o in own) for i in (1, 2)]==seen[1:] and not seen[0]
        assert max(o[1] for o in own)<.65*seen[1]

class Broken(Callback):
    def after_loss(self):
        if self.training and self.iter==1: raise KeyboardInterrupt

class Bad(Callback):
    "A gradient that is not a number, in the share of one process alone"
    order = MixedPrecision.order+1
    def before_step(self):
        if self.iter==2 and process_rank()==1: own_share(self.model.net.layers[0][0].weight.grad)[0] = float('nan')

class Saves(Callback):
    def after_epoch(self): self.learn.save('now')

def message(f, *args, **kwargs):
    try: f(*args, **kwargs)
    except FitError as e: return str(e)

def refused(out):
    "What a user reads, and that a learner goes on after a fit that was refused"
    learn,said = learner(path=Path(out).parent),{}
    with learn.no_bar():
        for name,cb in dict(l2sp=L2SP(), precision=MixedPrecision(), finder=LRFinder(), saves=Saves(), nan=Bad()).items():
            said[name] = message(learn.fit, 1, 1e-2, cbs=cb)
            if name=='saves': learn = learner(path=Path(out).parent)
        said['finite'] = all(bool(p.isfinite().all()) for p in learn.model.parameters())
        learn.fit(1, 1e-2)
        said['save'] = message(learn.save, 'after')
        learn.save('after', with_opt=False)
        for k,v in dict(FSDP_VERSION='1', FSDP_OFFLOAD_PARAMS='true', FSDP_IGNORED_MODULES='net', ACCELERATE_MIXED_PRECISION='bf16').items():
            was,os.environ[k] = os.environ.get(k),v
            said[k] = message(learn.fit, 1, 1e-2)
            del os.environ[k]
            if was: os.environ[k] = was
        leave(out, learn, **said)
        try: learn.fit(1, 1e-2, cbs=Broken())
        except KeyboardInterrupt: pass
        lost = [message(f) for f in (lambda: learn.fit(1), lambda: learn.model(1), lambda: learn.model.state_dict())]
    Path(f'{out}-{process_rank()}.json').write_text(json.dumps({**json.loads(Path(f'{out}-{process_rank()}.json').read_text()), 'lost':lost}))

def test_what_does_not_work_is_refused_in_words(shared, tmp_path):
    (said,other),_ = ran(shared, tmp_path/'two', 2, refused, **FSDP)
    for o in (said, other):
        assert all(f'{c} does not work under FSDP' in o[k] for k,c in dict(l2sp='L2SP', precision='MixedPrecision', finder='LRFinder').items())
        assert 'Save after the fit' in o['saves'] and 'with_opt=False' in o['save']
        assert 'The largest gradient is' in o['nan'] and 'epoch 1, step 3' in o['nan'] and o['finite'] and o['plain']
        assert "FSDP_VERSION must be 2, got '1'. Launch with --fsdp_version 2" in o['FSDP_VERSION'] and 'FSDP_OFFLOAD_PARAMS must be false' in o['FSDP_OFFLOAD_PARAMS']
        assert "FSDP_IGNORED_MODULES must be left out, got 'net'" in o['FSDP_IGNORED_MODULES'] and 'Launch with --mixed_precision no' in o['ACCELERATE_MIXED_PRECISION']
        assert len(o['lost'])==3 and all('the weights were spread over the processes' in s for s in o['lost'])

# --------------------------------------------------------------------------- the tasks

def close(a, b): return a.keys()==b.keys() and max((a[k].float()-v.float()).abs().max().item() for k,v in b.items())<1e-5

def as_one(run, task, n, **how):
    one,all_ = well(run(task, 'one', 1, **how)),well(run(task, 'all', n, fsdp=True, **how))
    assert np.allclose(curve(one), curve(all_), rtol=1e-4, atol=1e-5) and len(curve(one)) and np.array_equal(curve(all_), curve(all_, n-1))
    assert all(close(w, one['weights'][0]) for w in all_['weights'])
    return one,all_

RUNS = [('chat', 2, dict(way='live', batch_size=3, checkpointing=True)), ('chat', 4, dict(way='live', batch_size=5, adapter='lora')),
        ('text', 4, dict(way='live', batch_size=7, accumulate=True)), ('image', 4, dict(way='head', checkpoint='timm:test_resnet')),
        pytest.param('image', 2, dict(way='live', batch_size=3), marks=pytest.mark.slow), pytest.param('text', 2, dict(way='gradual'), marks=pytest.mark.slow),
        pytest.param('translation', 2, dict(way='live', batch_size=3), marks=pytest.mark.slow), pytest.param('speech', 2, dict(way='live', batch_size=3), marks=pytest.mark.slow),
        pytest.param('chat', 2, dict(way='gradual', batch_size=3), marks=pytest.mark.slow),
        pytest.param('image_text', 2, dict(way='live', batch_size=3, toy=dict(arch='test_vit')), marks=pytest.mark.slow)]

@pytest.mark.parametrize('task,n,how', RUNS, ids=str)
def test_tasks_train_as_one(run, task, n, how): as_one(run, task, n, **how)

def test_what_one_process_has_cached_serves_all_engines(run):
    alone = well(run('text', 'alone', 1, way='head', home='shared'))
    spread,ddp = (well(run('text', name, 2, way='head', home='shared', fsdp=name=='spread')) for name in ('spread', 'ddp'))
    assert alone['left'][0]['fills']==2 and not any(o['fills'] for r in (spread, ddp) for o in r['left'])
    assert all(np.allclose(curve(alone), curve(r), atol=1e-4) for r in (spread, ddp)) and all(close(alone['weights'][0], r['weights'][0]) for r in (spread, ddp))

def test_what_is_saved_is_plain_and_rows_count_once(run, tmp_path):
    one,two = as_one(run, 'text', 2, way='tune', batch_size=3, evaluate=True, save=True)
    (a,),(b,c) = one['left'],two['left']
    assert b['evaluate']==pytest.approx(a['evaluate'], abs=1e-6) and c['evaluate']==b['evaluate'] and b['group'] and b['fills']+c['fills']==a['fills']
    whole,spread = (tmp_path/f'{k}-model-0' for k in ('one', 'all'))
    assert sorted(p.name for p in whole.iterdir())==sorted(p.name for p in spread.iterdir()) and not (tmp_path/'all-model-1').exists()
    for name in ('model.safetensors', 'head.safetensors'): assert close(load_file(whole/name), load_file(spread/name))

def test_killed_and_resumed(run, tmp_path):
    how,folder = dict(way='best', dropout=True),str(tmp_path/'run')
    whole = well(run('text', 'whole', 2, fsdp=True, **how))
    for i,step in enumerate((2, 5)):
        assert run('text', f'killed{i}', 2, fsdp=True, resume=folder, act={r:('kill', step) for r in (0, 1)}, **how)['codes']==[-9, -9]
    for n,fsdp,words in ((4, True, 'processes was 2, is 4'), (1, False, 'processes was 2, is 1'), (2, False, 'sharded was true, is false')):
        other = run('text', f'other{n}{fsdp}', n, fsdp=fsdp, resume=folder, **how)
        assert all(other['codes']) and words in other['said'][0][1]
    again = well(run('text', 'again', 2, fsdp=True, resume=folder, **how))
    assert 'Resume: going on at' in again['said'][0][1] and np.array_equal(curve(whole), curve(again))
    assert all(torch.equal(v, again['weights'][0][k]) for k,v in whole['weights'][0].items())

def test_one_killed_stops_the_other(run, tmp_path):
    broken = run('text', 'broken', 2, fsdp=True, way='steps', resume=str(tmp_path/'run'), act={1:('kill', 6)})
    said = broken['said'][0][1]
    assert broken['codes']==[1, -9] and broken['seconds']<20
    assert 'FitError: Another of the 2 processes of this run has ended or does not answer' in said and 'the same call goes on from there' in said
