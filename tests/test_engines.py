"What an engine under a shared fit must not change: each fit wraps anew what trains, what a process does not use does not stop it, and `learn.model` stays the plain module"
import json, os, sys
from contextlib import contextmanager
from pathlib import Path
import numpy as np, pytest, torch
from accelerate import Accelerator
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from sft_nb.core.basics import FitError, process_rank
from sft_nb.core.processes import join_processes
from sft_nb.models.model import SFTModel
from sft_nb.training.callbacks import Accumulate, Autocast, has_bfloat16
from sft_nb.training.learner import SFTLearner

pytestmark = pytest.mark.usefixtures('home', 'one_thread')

class Sides(nn.Module):
    "One branch for all rows, one for those that have it, one for nobody"
    def __init__(self):
        super().__init__()
        self.stem,self.side,self.idle = nn.Linear(4, 6),nn.Linear(4, 6),nn.Linear(4, 6)
    def forward(self, x):
        h,has = self.stem(x),x[:,0]>0
        return torch.tanh(h.index_put((has.nonzero()[:,0],), h[has]+self.side(x[has])) if has.any() else h)

class Net(SFTModel):
    def stages(self): return []

def model():
    torch.manual_seed(3)
    net,head = Sides(),nn.Linear(6, 3)
    groups = {k:[f'net.{k}.weight', f'net.{k}.bias'] for k in ('idle','stem','side')}
    return Net(net, {**groups, 'head':['head.weight','head.bias']}, head)

def learner(rows=19, bs=4):
    "Rows 0, 1, 4, 5, … have the side: with two processes the first one's part alone"
    g = torch.Generator().manual_seed(0)
    x,y = torch.randn(rows, 4, generator=g),torch.randint(0, 3, (rows,), generator=g)
    x[:,0] = torch.where(torch.arange(rows)%4<2, 1., -1.)
    items = list(zip(x, y))
    learn = SFTLearner(DataLoaders(DataLoader(items, bs=bs), DataLoader(items, bs=bs), device='cpu'), model(), loss_func=nn.CrossEntropyLoss(), wd=.1)
    learn.logger = lambda *_: None
    return learn.unfreeze()

class Engines(Callback):
    "Which parameters the engine of each fit has, how often it ran, and how often it kept gradients to itself"
    def __init__(self): self.fits,self.runs,self.alone = [],0,0
    @contextmanager
    def watched(self):
        made,run,no_sync = DDP.__init__,DDP.forward,DDP.no_sync
        def init(ddp, *args, **kwargs):
            made(ddp, *args, **kwargs)
            self.fits.append(len(list(ddp.parameters())))
        def forward(ddp, *args): self.runs += 1; return run(ddp, *args)
        def alone(ddp): self.alone += 1; return no_sync(ddp)
        DDP.__init__,DDP.forward,DDP.no_sync = init,forward,alone
        try: yield self
        finally: DDP.__init__,DDP.forward,DDP.no_sync = made,run,no_sync

class Broken(Callback):
    def after_loss(self):
        if self.training and self.iter==1: raise KeyboardInterrupt

def job(out):
    "Several fits of one learner: the head, all, accumulated, one that broke off between forward and backward, one in lower precision"
    learn,found,engines = learner(),{},Engines()
    names,kind = list(learn.model.state_dict()),type(learn.model)
    with engines.watched(), learn.no_bar():
        learn.freeze_to('head').fit(1, 1e-2)
        learn.unfreeze().fit(2, 1e-2)
        engines.runs,found['runs'] = 0,engines.runs
        learn.fit(1, 1e-2, cbs=Accumulate(8))
        found['alone'] = engines.alone
        try: learn.fit(1, 1e-2, cbs=Broken())
        except KeyboardInterrupt: found['broken'] = True
        found['plain'] = 'forward' not in vars(learn.model) and type(learn.model) is kind and list(learn.model.state_dict())==names
        learn.fit(1, 1e-2)
        runs = engines.runs
        if has_bfloat16(): learn.fit(1, 0., wd=0., cbs=Autocast())
        found['lower'] = engines.runs-runs
    still = learn.model.net.idle.weight
    found.update(fits=engines.fits, idle=bool(torch.equal(still, model().net.idle.weight)) and still.grad is None)
    save_file({k:v.contiguous() for k,v in learn.model.state_dict().items()}, f'{out}-{process_rank()}.safetensors')
    found['history'] = [[h[k] for k in ('train_loss','valid_loss')] for h in learn.history[:5]]
    Path(f'{out}-{process_rank()}.json').write_text(json.dumps(found))

def ran(shared, out, n, f=job):
    codes,_ = shared.launched(n, out, lambda: f(out))
    assert not any(codes), '\n'.join(Path(f'{out}-{r}.err').read_text() for r in range(n))
    return [json.loads(Path(f'{out}-{r}.json').read_text()) for r in range(n)],[load_file(f'{out}-{r}.safetensors') for r in range(n)]

@pytest.mark.parametrize('n', [2, 4])
def test_parts_that_use_other_parameters_train_as_one(shared, tmp_path, n):
    (one,),(weights,) = ran(shared, tmp_path/'one', 1)
    found,all_weights = ran(shared, tmp_path/'all', n)
    for f,w in zip(found, all_weights):
        assert np.abs(np.array(f['history'])-np.array(one['history'])).max()<1e-5
        assert w.keys()==weights.keys() and max((w[k]-weights[k]).abs().max().item() for k in w)<1e-5
        assert all(torch.equal(w[k], all_weights[0][k]) for k in w)
        assert f['plain'] and f['broken'] and f['idle'] and one['idle']
        assert f['fits']==[2, 8, 8, 8, 8, *[8]*has_bfloat16()] and f['runs']==3*5 and f['alone']==2 and f['lower']==5*has_bfloat16()

def refused(out):
    said = []
    for words in (dict(ACCELERATE_MIXED_PRECISION='bf16'), dict(ACCELERATE_MIXED_PRECISION='no')):
        os.environ.update(words)
        join_processes()
        Accelerator().state._reset_state()
        learn = learner()
        with learn.no_bar():
            try: learn.fit(1, 1e-2)
            except FitError as e: said.append(str(e))
    try: learner().fit(1, 1e-2, cbs=GradientAccumulation(8))
    except FitError as e: said.append(str(e))
    learn = learner()
    learn.model.compile(backend='eager')
    try: learn.fit(1, 1e-2)
    except FitError as e: said.append(str(e))
    Path(f'{out}-{process_rank()}.json').write_text(json.dumps(said))
    save_file({}, f'{out}-{process_rank()}.safetensors')

def test_what_accelerate_was_asked_for_and_a_fit_does_not_do_is_refused(shared, tmp_path):
    (said,other),_ = ran(shared, tmp_path/'two', 2, refused)
    assert said==other and len(said)==3 and "mixed_precision='bf16'" in said[0] and 'Launch with --mixed_precision no' in said[0]
    assert 'GradientAccumulation(8) counts the rows of one of 2 processes alone. Take Accumulate(8)' in said[1]
    assert 'A compiled model trains in one process, and this run has 2. Leave out learn.model.compile()' in said[2]
