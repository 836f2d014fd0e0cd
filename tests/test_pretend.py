"Every task on a CUDA device that is not there: what is fitted, cached, evaluated, written and saved there is what the CPU gives, and no tensor of the CPU meets one of the device"
import contextlib, sys
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.data import load
from pretend import CUDA, Pretend, there
from shared import without_dropout
from test_devices import case, CASES, gpu_check, TASKS
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.inspection.attributions import told_rows
from sft_nb.models import seq2seq, timm_model
from sft_nb.training.adapters import add_adapter, merge_adapter
from sft_nb.training.cache import frozen_cache
from sft_nb.training.callbacks import Accumulate, checkpoint_activations, keep_weights, KeepBest, L2SP, PinnedBatches, wise_ft
from sft_nb.training.learner import seeded
from sft_nb.training.resume import Resume

NAMES = [*TASKS, 'image_text', *CASES]

def losses(learn): return [float(o) for o in learn.recorder.losses]
def answers(learn): return evaluate(learn).rows.prediction.tolist()

def fitted(learn, folder):
    learn.fit(1, 1e-3)
    assert len(losses(learn))==len(learn.dls.train)>1
    return losses(learn)

def cached(learn, folder):
    learn.freeze_to('head')
    with frozen_cache(learn): learn.fit(2, 1e-3)
    return losses(learn)

def evaluated(learn, folder):
    ev = evaluate(learn)
    return dict(ev.metrics),ev.rows.prediction.tolist(),None if ev.probabilities is None else ev.probabilities

def tuned(learn, folder):
    "The default: a head that is solved for or trained, then the rest"
    learn.fine_tune()
    return answers(learn)

def resumed(learn, folder):
    for epochs in (1, 2): learn.fit(epochs, 1e-3, cbs=Resume(folder/'run', every=1))
    return losses(learn)

def called_back(learn, folder):
    checkpoint_activations(learn)
    keep_weights(learn)
    learn.fit(2, 1e-3, cbs=[Accumulate(8), L2SP(), KeepBest()])
    wise_ft(learn, .5)
    return losses(learn),answers(learn)

def adapted(learn, folder):
    add_adapter(learn, 'lora', r=2)
    learn.fit(1, 1e-3)
    merge_adapter(learn)
    return losses(learn),answers(learn)

def saved(learn, folder):
    learn.save(folder/'weights')
    learn.load(folder/'weights')
    save_predictor(learn, folder/'model')
    return load_predictor(folder/'model').predict(learn.dls.sft.rows[:4]).prediction.tolist()

def looked_at(learn, folder):
    learn.lr_find(show_plot=False)
    learn.show_results()
    plt.close('all')
    if learn.spec.task.target.listed and not learn.spec.task.name.startswith('tokens'): told_rows(learn, evaluate(learn).rows[:2])
    return answers(learn)

WORK = (fitted, cached, evaluated, tuned, resumed, called_back, adapted, saved, looked_at)

def done(work, name, folder, pretends):
    with seeded(1): learn = case(name, folder, True)
    without_dropout(learn.model) # texts and sounds of several windows draw other numbers where all windows are computed at once
    if pretends:
        learn.model.to(CUDA)
        learn.dls.to(CUDA)
    folder.joinpath('out').mkdir()
    with seeded(2), learn.no_bar(), learn.no_logging(): out = work(learn, folder/'out')
    assert not pretends or all(there(p) for p in learn.model.parameters())
    return out

def same(a, b):
    if isinstance(a, dict): return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple): return len(a)==len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) or isinstance(a, list) and a and isinstance(a[0], float): return np.allclose(a, b, rtol=1e-3, atol=1e-5)
    return a==(pytest.approx(b, rel=1e-3) if isinstance(b, float) else b)

@pytest.mark.parametrize('work', WORK, ids=lambda f: f.__name__)
@pytest.mark.parametrize('name', NAMES)
def test_the_device_does_what_the_cpu_does(name, work, tmp_path, home):
    here = done(work, name, tmp_path/'here', False)
    with Pretend() as mode: elsewhere = done(work, name, tmp_path/'there', True)
    assert mode.calls>100 and same(here, elsewhere), (here, elsewhere)

def after(monkeypatch, where, name, change):
    "Change what a function returns"
    f = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *args: change(f(*args)))

MISTAKES = dict(moved=('image', fitted, timm_model, '_top', lambda h: h.cpu()), new=('image', evaluated, timm_model, '_top', lambda h: h+torch.zeros(2)),
                numpy=('image', evaluated, timm_model, '_top', lambda h: torch.from_numpy(h.detach().numpy())),
                written=('translation', evaluated, seq2seq.SequenceModel, 'encode', lambda x: {key:value.cpu() for key,value in x.items()}))

@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_planted_mistake_is_seen(mistake, tmp_path, home, monkeypatch):
    name,work,*where = MISTAKES[mistake]
    after(monkeypatch, *where)
    done(work, name, tmp_path/'here', False)
    with pytest.raises((RuntimeError, TypeError), match='same device|numpy'), Pretend(): done(work, name, tmp_path/'there', True)

class Noted(Callback):
    "Whether the loaders of a fit pin their batches, in the middle of it"
    def before_batch(self): self.pins = self.dl.pin_memory,self.dl.fake_l.pin_memory
    def after_batch(self):
        if getattr(self, 'breaks', False): raise ZeroDivisionError('here')

@pytest.mark.parametrize('inside', [contextlib.nullcontext, frozen_cache], ids=['live', 'cached'])
def test_pinned_batches(inside, tmp_path, home):
    "The same losses; nobody waits for a copy; afterwards, also after an error, all is as it was; on the CPU nothing is pinned"
    found,to_device = {},load.to_device
    for name,pretends in dict(plain=True, pinned=True, cpu=False).items():
        def work(learn, folder):
            learn.freeze_to('head')
            noted,cbs = Noted(),[] if name=='plain' else [PinnedBatches()]
            with inside(learn) if inside is frozen_cache else inside(): learn.fit(1, 1e-3, cbs=[noted, *cbs])
            pins,noted.breaks = noted.pins,True
            with pytest.raises(ZeroDivisionError): learn.fit(1, 1e-3, cbs=[noted, *cbs])
            assert load.to_device is to_device and not any(o.pin_memory for dl in learn.dls.loaders for o in (dl, dl.fake_l))
            return losses(learn),pins
        mode = Pretend()
        with mode if pretends else contextlib.nullcontext(): found[name] = *done(work, 'text', tmp_path/name, pretends),mode.unwaited
    assert found['plain'][0]==found['pinned'][0]==found['cpu'][0] and found['pinned'][2]>found['plain'][2]
    assert [o[1] for o in found.values()]==[(False,False), (True,True), (False,False)]

@pytest.mark.parametrize('task', [*TASKS, 'image_text'])
def test_the_check_for_a_gpu_gets_through(task, tmp_path, home, monkeypatch):
    "`tools/gpu_check.py --device cuda`, its ways of memory and copying too; what picks a device by itself (Trainer) or is compiled has nothing to run on"
    check = gpu_check(monkeypatch)
    for name,found in dict(synchronize=None, reset_peak_memory_stats=None, empty_cache=None, max_memory_allocated=0, get_device_name='a device that is not there').items():
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    monkeypatch.setattr(check, 'COMPILED', ())
    if task=='text': monkeypatch.setattr(check, 'speed', lambda *args: [])
    monkeypatch.setattr(sys, 'argv', ['gpu_check.py', '--device', 'cuda', '--size', 'tiny', '--tasks', task, '--steps', '1', '--out', str(tmp_path/'gpu.md')])
    with Pretend(): failed = check.main()
    table = (tmp_path/'gpu.md').read_text()
    assert not failed and table.count('| ok |')>=13 and ('| pinned |' in table)==(task!='text'), table

@pytest.mark.parametrize('name', ['speech', 'audio', *(name for name in CASES if name!='tokens in windows')])
def test_features_of_sounds_keep_their_precision(name, tmp_path):
    "What an extractor computes with torch stays float32 where the network computes in bfloat16"
    learn = case(name, tmp_path)
    sounds = learn.dls.valid.one_batch()[0]['sounds']
    plain = learn.dls.coder.batch(sounds)
    with torch.autocast('cpu', torch.bfloat16): lower = learn.dls.coder.batch(sounds)
    assert all(torch.equal(v, lower[k]) for k,v in plain.items() if isinstance(v, torch.Tensor))
