"""Mistakes of device without a device: networks, losses, borders of the cache and the optimizer run on tensors that say they are on CUDA and hold no numbers

A tensor on the wrong device raises there, as it would on a GPU. What this cannot show: the numbers, the backward pass (the autograd engine refuses a device that is not there),
anything that reads a number back to decide what comes next (generation, the sides that a row of picture and text lacks, words without tags; `test_pretend` has those), memory, speed.
"""
import copy, importlib.metadata, importlib.util, random, subprocess, sys, traceback
from contextlib import suppress
from pathlib import Path
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientClip
from fastai.losses import CrossEntropyLossFlat
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from sft_nb.data.load import load_data
from sft_nb.models import sound_model, speech_model, text_model, token_model
from sft_nb.tasks.small_nets import small_ctc, small_spectrogram_net
from sft_nb.tasks.toys import make_toy
from sft_nb.training import cache, cache_store, guards, learner
from sft_nb.training.callbacks import Accumulate, Autocast, has_bfloat16, L2SP
from sft_nb.training.learner import seeded, sft_learner
from sft_nb.training.resume import Resume

TASKS = ('image', 'text', 'translation', 'speech', 'chat', 'tokens', 'audio')
# name of a case -> task, network, options: texts and sounds of several windows, and convolutions that normalize over the time of each clip
CASES = {'tokens in windows':('tokens', None, dict(max_length=8)), 'audio of waves':('audio', small_ctc, {}), 'audio of spectrograms':('audio', small_spectrogram_net, {}),
         'speech of waves':('speech', lambda p: small_ctc(p, 'abcdefghijklmnopqrstuvwxyz'), dict(window=None))}

def on_cuda(o, mode):
    "The same shapes, said to be on CUDA"
    if isinstance(o, torch.Tensor):
        with mode: return torch.empty_strided(o.shape, o.stride(), dtype=o.dtype, device='cuda')
    if isinstance(o, dict): return {k:on_cuda(v, mode) for k,v in o.items()}
    return type(o)(on_cuda(v, mode) for v in o) if isinstance(o, (list,tuple)) else o

def moved(model, mode):
    "`model.to('cuda')`, as far as it goes without one"
    for m in model.modules():
        for k,p in m._parameters.items():
            if p is not None: m._parameters[k] = nn.Parameter(on_cuda(p, mode), requires_grad=p.requires_grad)
        for k,b in m._buffers.items():
            if b is not None: m._buffers[k] = on_cuda(b, mode)
    return model

def case(name, folder, pretrained=False):
    "A learner of a task, or of a case"
    task,net,options = CASES.get(name, (name, None, {}))
    toy = make_toy(task, folder/task)
    checkpoint = str(net(folder/'net')) if net else toy['checkpoint']
    dls = load_data(task, toy['source'], checkpoint=checkpoint, pretrained=bool(net) or pretrained and toy['pretrained'], batch_size=4, **{**toy['load'], **options})
    return sft_learner(dls, freeze=None)

def without_a_driver():
    "What torch says where it wants a driver even for tensors without numbers, as a CUDA build of 2.8 does; None: it does not"
    try:
        with FakeTensorMode(): torch.empty(1, 3, 4, 4, device='cuda').contiguous(memory_format=torch.channels_last)
    except RuntimeError as e: return f'torch {torch.__version__}: {str(e).splitlines()[0]}'

@pytest.fixture
def fake(tmp_path):
    "(learner whose model says it is on CUDA, a batch, mode) of a task or case"
    if refused := without_a_driver(): pytest.skip(refused)
    def made(name):
        learn,mode = case(name, tmp_path),FakeTensorMode()
        dls = learn.dls
        batch = next(iter(dls.train))
        moved(learn.model, mode)
        x,y = on_cuda(tuple(batch[:dls.n_inp]), mode),on_cuda(tuple(batch[dls.n_inp:]), mode)
        return learn,x,y,mode
    return made

def loss_of(learn, scores, y):
    "The loss without fastai's wrapper, which casts to a subclass that these tensors cannot be"
    if hasattr(learn.loss_func, 'func'): return learn.loss_func.func(scores.flatten(0, -2), y[0].flatten())
    return learn.loss_func(scores, *y)

def cuda_alone(o):
    if isinstance(o, torch.Tensor): return o.device.type=='cuda'
    return all(map(cuda_alone, o.values() if isinstance(o, dict) else o))

@pytest.mark.parametrize('name', [*TASKS, *CASES])
def test_networks_and_losses_stay_on_their_device(name, fake):
    learn,x,y,mode = fake(name)
    for training in (True, False):
        learn.model.train(training)
        with mode, torch.no_grad():
            scores = learn.model(*x)
            assert cuda_alone(scores)
            if name!='speech of waves': assert loss_of(learn, scores, y).device.type=='cuda'  # torch has no CTC loss for such tensors

@pytest.mark.parametrize('name', [*TASKS, *CASES])
def test_borders_of_the_cache_stay_on_their_device(name, fake):
    learn,x,y,mode = fake(name)
    learn.model.eval()
    assert learn.model.borders()
    for border in learn.model.borders():
        with mode, torch.no_grad():
            inside = learn.model.prefix(border, *x)
            assert cuda_alone(inside) and cuda_alone(learn.model.suffix(border, inside)), border

@pytest.mark.parametrize('name', TASKS)
def test_the_optimizer_stays_on_its_device(name, fake):
    learn,x,y,mode = fake(name)
    learn.create_opt()
    with mode:
        for p in learn.model.parameters(): p.grad = torch.ones_like(p)
        for _ in range(2): learn.opt.step()
    assert learn.opt.all_params() and all(cuda_alone([v for v in s.values() if isinstance(v, torch.Tensor)]) for s in learn.opt.state.values())

def on_meta(o):
    "The same shapes without numbers, on a device whose backward pass torch can run"
    if isinstance(o, torch.Tensor): return torch.empty_strided(o.shape, o.stride(), dtype=o.dtype, device='meta')
    if isinstance(o, dict): return {k:on_meta(v) for k,v in o.items()}
    return type(o)(on_meta(v) for v in o) if isinstance(o, (list,tuple)) else o

# transformers asks there whether a mask is needed, which a tensor without numbers cannot say
_ASKS = {'text', 'translation', 'speech', 'chat', 'tokens', 'tokens in windows', 'audio of waves', 'speech of waves'}

@pytest.mark.parametrize('name', [pytest.param(o, marks=[pytest.mark.xfail(raises=RuntimeError, strict=True)]*(o in _ASKS)) for o in (*TASKS, *CASES)])
def test_the_backward_pass_stays_on_its_device(name, tmp_path, monkeypatch):
    on_all_devices(monkeypatch)
    learn = case(name, tmp_path)
    batch = next(iter(learn.dls.train))
    x,y = (on_meta(tuple(o)) for o in (batch[:learn.dls.n_inp], batch[learn.dls.n_inp:]))
    learn.model.to('meta').train()
    loss_of(learn, learn.model(*x), y).mean().backward()
    grads = [p.grad for p in learn.model.parameters() if p.grad is not None]
    assert grads and all(g.device.type=='meta' for g in grads)

def on_all_devices(monkeypatch):
    "What a model does on a device that would wait for numbers, on the CPU"
    for m in (text_model, token_model, sound_model, speech_model): monkeypatch.setattr(m, '_waits', lambda t: True)

@pytest.mark.parametrize('name', ['tokens', 'audio', *CASES])
def test_what_is_computed_elsewhere_is_what_a_cpu_computes(name, tmp_path, monkeypatch):
    "Scores, activations at each border and gradients, with and without what a device does so that it need not wait"
    learn = case(name, tmp_path)
    batches,model = [b for dl in learn.dls.loaders for b in dl],learn.model.eval()
    def found():
        out = []
        for x,y in batches:
            model.zero_grad()
            scores = model(x)
            learn.loss_func(scores, y).mean().backward()
            with torch.no_grad(): out += [scores.detach(), *(model.suffix(b, model.prefix(b, x)) for b in model.borders())]
            out += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return out
    here = found()
    on_all_devices(monkeypatch)
    there = found()
    assert len(here)==len(there) and all(a.shape==b.shape and torch.allclose(a.nan_to_num(), b.nan_to_num(), rtol=1e-4, atol=1e-5) for a,b in zip(here, there))
    masks = [x['mask'] for x,_ in batches if 'mask' in x]
    assert not name.startswith('audio') or any(not m.all() for m in masks), 'a batch has sounds of one window and of several'

@pytest.mark.parametrize('mistake', [lambda h: h.cpu(), lambda h: h+torch.ones(h.shape[-1]), lambda h: h[torch.arange(len(h)), ..., torch.zeros(h.shape[-1])>0]])
def test_a_planted_mistake_is_seen(mistake, fake):
    learn,x,y,mode = fake('image')
    learn.model.head_names and learn.model.net.get_submodule(learn.model.head_names[0]).register_forward_hook(lambda m,i,o: mistake(o))
    with pytest.raises((AssertionError, RuntimeError, DataDependentOutputException)), mode, torch.no_grad():
        scores = learn.model(*x)
        assert cuda_alone(scores) and loss_of(learn, scores, y).device.type=='cuda'

@pytest.mark.parametrize('name', ['tokens in windows', 'audio'])
@pytest.mark.parametrize('mistake', [lambda h: h.cpu(), lambda h: h*h.sum().item()])
def test_a_mistake_in_words_and_windows_is_seen(name, mistake, fake, monkeypatch):
    learn,x,y,mode = fake(name)
    if name=='audio':
        placed = sound_model._placed
        monkeypatch.setattr(sound_model, '_placed', lambda t, mask: mistake(placed(t, mask)))
    else:
        words = token_model.word_vectors
        monkeypatch.setattr(token_model, 'word_vectors', lambda h, *args: words(mistake(h), *args))
    with pytest.raises((RuntimeError, DataDependentOutputException)), mode, torch.no_grad(): learn.model(*x)

def test_seeds_reach_all_devices(monkeypatch):
    "Without a CUDA device the calls are counted: the generators are seeded, and put back"
    seeds,states = [],[]
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_rng_state_all', lambda: ['as it was'])
    monkeypatch.setattr(torch.cuda, 'set_rng_state_all', states.append)
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeds.append)
    before = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state()
    with seeded(7): drawn = torch.rand(1)
    assert seeds==[7] and states==[['as it was']]
    assert random.getstate()==before[0] and np.random.get_state()[1].tolist()==before[1] and torch.equal(torch.get_rng_state(), before[2])
    with seeded(7): assert torch.equal(torch.rand(1), drawn)
    assert set(learner._random_states())=={'python','numpy','torch','cuda','mps'}

def test_seeds_reach_apples_devices(monkeypatch):
    "As above, for MPS"
    seeds,states = [],[]
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(torch.mps, 'get_rng_state', lambda: 'as it was')
    monkeypatch.setattr(torch.mps, 'set_rng_state', states.append)
    monkeypatch.setattr(torch.mps, 'manual_seed', seeds.append)
    with seeded(7): torch.rand(1)
    assert seeds==[7] and states==['as it was']

class Scaler:
    "In the place of torch's `GradScaler`: a scale that doubles in each step"
    def __init__(self): self.scale,self.loads = 1.,0
    def state_dict(self): return dict(scale=self.scale)
    def load_state_dict(self, state): self.scale,self.loads = state['scale'],self.loads+1

class Scales(Callback):
    "What `MixedPrecision` does with its scaler, on any device"
    order = MixedPrecision.order
    def before_fit(self): self.learn.scaler,self.found = Scaler(),[]
    def after_step(self):
        self.learn.scaler.scale *= 2
        self.found.append(self.learn.scaler.scale)
    def after_fit(self): self.loads = self.learn.scaler.loads

def test_a_resumed_run_goes_on_with_its_scale(tmp_path, monkeypatch, home):
    check = gpu_check(monkeypatch)
    make = check.made('text', tmp_path, 'tiny')
    def learner(): return make(torch.device('cpu'), cbs=[Resume(tmp_path/'run', every=1), Scales()])
    first,again = check.stopped_after(learner(), 3),learner()
    for learn in (first, again):
        with suppress(KeyboardInterrupt), learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
    steps = 2*len(again.dls.train)
    assert steps>4 and again.scales.loads==1 and again.scales.found==[2.**(i+1) for i in range(steps)], 'those of the first run are remembered too'

def test_a_compiled_model_trains_as_it_is(tmp_path, home):
    "`model.compile()` reaches what trains above the cache; weights, and a copy of the model, are what they are without it"
    graphs,kept = [],{}
    def backend(graph, inputs):
        graphs.append(len(inputs))
        return graph.forward
    for name in ('plain', 'compiled'):
        learn = case('text', tmp_path/name, True)
        learn.freeze_to('head')
        for m in learn.model.modules():
            if isinstance(m, nn.Dropout): m.p = 0.
        if name=='compiled': learn.model.compile(backend=backend)
        with learn.no_bar(), learn.no_logging(), cache.frozen_cache(learn): learn.fit(2, 1e-2)
        assert bool(graphs)==(name=='compiled')
        kept[name] = copy.deepcopy(learn.model).state_dict()
    assert kept['plain'].keys()==kept['compiled'].keys() and all(torch.allclose(v, kept['compiled'][k], atol=1e-6) for k,v in kept['plain'].items())

def gpu_check(monkeypatch):
    "`tools/gpu_check.py` as a module, with a cache folder that can be set"
    spec = importlib.util.spec_from_file_location('gpu_check', Path(__file__).parent.parent/'tools'/'gpu_check.py')
    check = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    spec.loader.exec_module(check)
    for o in (cache, cache_store): monkeypatch.setattr(o, 'cache_folder', o.cache_folder)
    return check

class Draws(Callback):
    "Random numbers that another device would not have drawn"
    order = -50
    def before_batch(self): torch.rand(3)

@pytest.mark.parametrize('task', [*TASKS, 'image_text'])
def test_the_check_for_a_gpu_does_not_depend_on_random_numbers(task, tmp_path, monkeypatch):
    "Those of a GPU are others: a network with dropout would lose other units there"
    check = gpu_check(monkeypatch)
    make = check.made(task, tmp_path, 'tiny')
    plain,drawn = (check.losses(make(torch.device('cpu'), freeze=None), cbs) for cbs in ([], [Draws()]))
    assert plain.tolist()==drawn.tolist() and len(plain)==check.STEPS

@pytest.mark.parametrize('broken', [False, True])
def test_the_check_for_a_gpu_sees_what_it_looks_for(broken, tmp_path, monkeypatch, capsys):
    "`tools/gpu_check.py` on the CPU: it passes, and a network that answers otherwise on the device fails it"
    check = gpu_check(monkeypatch)
    if broken:
        made,answers = check.made,iter(range(1, 1000))
        def wrong(*args):
            make = made(*args)
            def learner(device, **kw):
                learn = make(device, **kw)
                with torch.no_grad(): next(iter(reversed(list(learn.model.parameters())))).add_(next(answers))
                return learn
            return learner
        monkeypatch.setattr(check, 'made', wrong)
    monkeypatch.setattr(sys, 'argv', ['gpu_check.py', '--device', 'cpu', '--tasks', 'image', '--steps', '1', '--out', str(tmp_path/'gpu.md')])
    assert check.main()==int(broken)
    table = (tmp_path/'gpu.md').read_text()
    assert ('FAILED' in table)==broken and 'needs CUDA' in table and '| loop |' in table

IMPORTED = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split('.')[0] in {'ipywidgets', 'anywidget', 'traitlets', 'ipykernel', 'jupyterlab', 'notebook', 'nbdev'} | ({'IPython', 'fasthtml'} if sys.argv[1:] else set()):
            raise ModuleNotFoundError(f'No module named {name!r}: blocked', name=name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, 'tools')
import gpu_check
print(gpu_check.TASKS)
"""

def test_the_check_for_a_gpu_needs_no_widgets():
    "Nothing of notebooks is where the check runs; `fastprogress` from 1.1 on imports `fasthtml`, which the list of wheels leaves out"
    words = (Path(__file__).parent.parent/'tools'/'gpu_check.py').read_text()
    assert "'fastprogress<1.1'" in words and "'plum-dispatch<2.10'" in words
    old = tuple(map(int, importlib.metadata.version('fastprogress').split('.')[:2]))<(1, 1)
    r = subprocess.run([sys.executable, '-c', IMPORTED, *(['all'] if old else [])], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert not r.returncode and 'image_text' in r.stdout, r.stderr

def test_the_check_for_a_gpu_ends_in_time(tmp_path, monkeypatch):
    "A table after each task; when the time is over, what is left stands there as not run"
    check,tables = gpu_check(monkeypatch),[]
    out,clock = tmp_path/'gpu.md',[0.]
    monkeypatch.setattr(check.time, 'perf_counter', lambda: clock[0])
    def measured(task, *args):
        tables.append(out.read_text() if out.exists() else '')
        if task=='text': clock[0] = 500.
        return [dict(task=task, way='loop')]
    def quick(name, run, found, task): return timed(name, lambda: 'quick', found, task)
    timed = check.check
    monkeypatch.setattr(check, 'speed', measured)
    monkeypatch.setattr(check, 'check', quick)
    monkeypatch.setattr(sys, 'argv', ['gpu_check.py', '--device', 'cpu', '--tasks', 'image', 'text', 'audio', '--out', str(out), '--seconds', '450'])
    assert check.main()==0
    assert tables[0]=='' and '| image | cached = live in float32 | ok' in tables[1] and '| text |' not in tables[1]
    table = out.read_text()
    assert '| text | cached = live in float32 | ok' in table and all(f'| audio | {o} | not run | no time left' in table for o in ('cached = live in float32', 'speed'))
    assert '| audio | loop |' not in table and '| text | loop |' in table

_READS = ('tolist', 'numpy', 'cpu')  # those that on the CPU reach no operator
_OPERATORS = ('_local_scalar_dense', 'nonzero', 'masked_select', '_unique2')

def reads_back(name, args):
    "Whether an operator's result, or the shape of it, depends on numbers: a device would be waited for"
    return name in _OPERATORS or name=='index' and any(o is not None and o.dtype in (torch.bool,torch.uint8) for o in args[1])

class Operators(TorchDispatchMode):
    "Sees each operator, whoever calls it and by whichever method"
    def __init__(self, note):
        super().__init__()
        self.note = note
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if reads_back(op.overloadpacket.__name__, args): self.note()
        return op(*args, **(kwargs or {}))

class Reads(Callback):
    "What reads numbers back to the host in steps of training, the recorder's part counted, by the function of ours that does it"
    order = -100
    def __init__(self): self.found,self.was,self.mode,self.end = [],{},None,ReadsEnd(self)
    def note(self):
        at = next(o for o in reversed(traceback.extract_stack()) if '/torch/' not in o.filename and o.filename!=__file__ and o.name!='__torch_function__')
        if '/sft_nb/' in at.filename and '/sft_nb/data/' not in at.filename: self.found.append(f'{Path(at.filename).stem}.{at.name}')
    def _noted(self, f):
        def read(t, *args, **kw):
            self.note()
            return f(t, *args, **kw)
        return read
    def before_batch(self):
        if not self.training: return
        self.was,self.mode = {k:getattr(torch.Tensor, k) for k in _READS},Operators(self.note)
        for k,f in self.was.items(): setattr(torch.Tensor, k, self._noted(f))
        self.mode.__enter__()

class ReadsEnd(Callback):
    "The last of a step"
    order = 1000
    def __init__(self, reads): self.reads = reads
    def after_batch(self):
        if self.reads.mode: self.reads.mode.__exit__(None, None, None)
        for k,f in self.reads.was.items(): setattr(torch.Tensor, k, f)
        self.reads.was,self.reads.mode = {},None
    after_cancel_batch = after_cancel_fit = after_batch

# of the sides of a row: once per batch; of the flag: a number that stands on the host
_ALLOWED = {'fusion._rows_with', 'guards._late'}

WAYS = [*((name, way) for name in (*TASKS, 'image_text') for way in ('plain', 'autocast', 'l2sp', 'clip')), *((name, 'plain') for name in CASES),
        *((name, way) for name in ('image', 'tokens') for way in ('weights', 'accumulate')), ('image', 'planted')]

@pytest.mark.parametrize('name,way', WAYS)
def test_steps_read_nothing_back(name, way, tmp_path, monkeypatch):
    "fastai and the libraries read back on their own account; ours does not, but for what `_ALLOWED` names"
    if way=='autocast' and not has_bfloat16(): pytest.skip('no bfloat16 on this processor')
    monkeypatch.setattr(guards, '_waits', lambda model: True)
    on_all_devices(monkeypatch)
    learn,reads = case(name, tmp_path, True),Reads()
    if way=='planted': monkeypatch.setattr(guards, '_waits', lambda model: False)
    if way=='weights': learn.loss_func = CrossEntropyLossFlat(axis=-1, ignore_index=-100, weight=torch.rand(len(learn.spec.vocab))+.5)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=[reads, reads.end, *dict(autocast=[Autocast()] if way=='autocast' else [], l2sp=[L2SP()], clip=[GradientClip(1.)], accumulate=[Accumulate(8)]).get(way, [])])
    assert len(learn.history)==1
    others = set(reads.found)-_ALLOWED
    assert (others=={'guards.before_step', 'guards.after_loss'}) if way=='planted' else not others, others
    assert reads.found.count('fusion._rows_with')<=3*len(learn.dls.train)
