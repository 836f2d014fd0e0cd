"A run that is killed, interrupted or short of something goes on where it was, and says how"
import contextlib, json, os, resource, signal, subprocess, sys
from pathlib import Path
import pytest, torch
from fastai.callback.core import Callback
from sft_nb.training import resume_files as states
from sft_nb.core.basics import FitError, FolderError
from sft_nb.data.task import get_task
from sft_nb.data.load import load_data
from sft_nb.training.learner import sft_learner
from sft_nb.training.cache_store import clear_cache
from sft_nb.training.callbacks import Accumulate, Autocast, has_bfloat16, KeepBest
from sft_nb.training.resume import Resume
from sft_nb.tasks.toys import make_toy

pytestmark = pytest.mark.usefixtures('home', 'one_thread')

def killed(folder, kills, seed):
    script = Path(__file__).with_name('killed.py')
    r = subprocess.run([sys.executable, script, 'image,text', folder, str(kills), str(seed)], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1'})
    print(r.stdout)
    assert not r.returncode, r.stderr
    return [json.loads(l) for l in r.stdout.splitlines()]

def test_killed_runs_end_with_the_same_weights(tmp_path):
    for out in killed(tmp_path, 6, 0): assert out['kills']==6 and out['middle']>=2 and out['equal']==out['runs']>0

@pytest.mark.slow
def test_killed_a_hundred_times(tmp_path):
    for out in killed(tmp_path, 60, 7): assert out['kills']==60 and out['middle']>=15 and out['equal']==out['runs']>3 and set(out['places'])=={'save','stage','step','moment'}

class Act(Callback):
    "Does something at a step of a phase"
    todo = {}
    def before_batch(self):
        if self.training and (act := Act.todo.pop((self.learn.phase, self.train_iter), None)): act()

@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    make_toy('image', folder)
    return folder

def learner(shapes, **load):
    dls = load_data('image', shapes, **{**dict(size=64, valid=.25, augment=True, batch_size=4, checkpoint='timm:test_resnet', pretrained=False), **load})
    learn = sft_learner(dls)
    for c in [o for o in learn.cbs if type(o).__name__=='ProgressCallback']: learn.remove_cb(c)
    learn.logger = lambda *_: None
    return learn

def tuned(shapes, folder=None, todo=None, epochs=2, every=1, cbs=(), learn=None, **load):
    Act.todo = todo or {}
    learn = learn or learner(shapes, **load)
    learn.fine_tune(epochs, 1e-2, freeze_epochs=1, cbs=[Act(), *cbs, *([Resume(folder, every=every)] if folder else [])])
    return learn

def same(a, b): return all(torch.equal(v, b.model.state_dict()[k]) for k,v in a.model.state_dict().items())
def raises(error):
    def act(): raise error
    return act

MIDDLE = 'finetune', 4

@pytest.mark.parametrize('cbs', [(), ('best',), ('accumulate',), ('autocast',), ('workers',)], ids=str)
def test_goes_on_with_callbacks(shapes, tmp_path, cbs):
    if 'autocast' in cbs and not has_bfloat16(): pytest.skip('no bfloat16 on this processor')
    made = lambda: [dict(best=lambda: KeepBest('valid_loss', patience=1), accumulate=lambda: Accumulate(8), autocast=Autocast)[c]() for c in cbs if c!='workers']
    load = dict(num_workers=2) if 'workers' in cbs else {}
    whole = tuned(shapes, cbs=made(), **load)
    with pytest.raises(KeyboardInterrupt): tuned(shapes, tmp_path/'run', {MIDDLE:raises(KeyboardInterrupt())}, cbs=made(), **load)
    assert same(whole, tuned(shapes, tmp_path/'run', cbs=made(), **load))

@pytest.mark.parametrize('sig,ends', [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_waits_for_the_batch(shapes, tmp_path, capsys, sig, ends):
    whole,was = tuned(shapes),signal.getsignal(sig)
    with pytest.raises(ends): tuned(shapes, tmp_path/'run', {MIDDLE:lambda: os.kill(os.getpid(), sig)}, every='1h')
    said = capsys.readouterr().err
    assert "up to 'finetune', epoch 2 of 2, step 2" in said and 'the same call goes on from there' in said
    assert signal.getsignal(sig)==was
    assert same(whole, tuned(shapes, tmp_path/'run', every='1h'))

def test_a_lost_cache_is_made_again(shapes, tmp_path):
    whole = tuned(shapes)
    with pytest.raises(KeyboardInterrupt): tuned(shapes, tmp_path/'run', {('head', 1):raises(KeyboardInterrupt())})
    assert clear_cache()
    assert same(whole, tuned(shapes, tmp_path/'run'))

OTHER = dict(epochs=(dict(epochs=3), 'fine_tune(epochs=) was 2, is 3'), batch=(dict(batch_size=2), 'batch_size was 4, is 2'), data=(dict(max_items=12), 'data was'),
             seed=(dict(valid=.5), 'data was'), callbacks=(dict(cbs=[Accumulate(8)]), 'callbacks was'), augment=(dict(augment=False), 'options was'))

@pytest.mark.parametrize('other,words', OTHER.values(), ids=OTHER)
def test_another_call_is_refused(shapes, tmp_path, other, words):
    with pytest.raises(KeyboardInterrupt): tuned(shapes, tmp_path/'run', {('head', 1):raises(KeyboardInterrupt())})
    with pytest.raises(FitError, match='begun otherwise') as e: tuned(shapes, tmp_path/'run', **other)
    assert words in str(e.value) and 'pass another folder' in str(e.value)

def test_other_content_is_refused(shapes, tmp_path):
    import shutil
    copy = tmp_path/'copy'
    shutil.copytree(shapes, copy)
    with pytest.raises(KeyboardInterrupt): tuned(copy, tmp_path/'run', {('head', 2):raises(KeyboardInterrupt())})
    file = sorted(copy.glob('*/*.png'))[0]
    file.write_bytes(sorted(copy.glob('*/*.png'))[1].read_bytes())
    with pytest.raises(FitError) as e: tuned(copy, tmp_path/'run')
    assert 'data' in str(e.value)

def test_other_weights_are_refused(shapes, tmp_path):
    with pytest.raises(KeyboardInterrupt): tuned(shapes, tmp_path/'run', {('head', 1):raises(KeyboardInterrupt())})
    learn = learner(shapes)
    with torch.no_grad(): next(learn.model.parameters()).add_(1)
    with pytest.raises(FitError, match='other pretrained weights'): tuned(shapes, tmp_path/'run', learn=learn)

@pytest.mark.parametrize('harm', ['cut', 'bit', 'json', 'gone'])
def test_a_damaged_state_is_not_used(shapes, tmp_path, capsys, harm):
    whole = tuned(shapes)
    with pytest.raises(KeyboardInterrupt): tuned(shapes, tmp_path/'run', {MIDDLE:raises(KeyboardInterrupt())})
    path = sorted((tmp_path/'run').glob('state-*.json'))[-1]
    blob = path.with_suffix('.safetensors')
    if harm=='cut': blob.write_bytes(blob.read_bytes()[:-100])
    elif harm=='bit': blob.write_bytes(blob.read_bytes()[:-1]+bytes([blob.read_bytes()[-1]^1]))
    elif harm=='json': path.write_text(path.read_text()[:-10])
    else: blob.unlink()
    again = tuned(shapes, tmp_path/'run')
    assert 'Going back to the state before it' in capsys.readouterr().err and same(whole, again)

def test_nothing_is_pickled(shapes, tmp_path, monkeypatch):
    import pickle
    for f in ('dump', 'dumps', 'load', 'loads'): monkeypatch.setattr(pickle, f, raises(AssertionError('pickle')))
    with pytest.raises(KeyboardInterrupt): tuned(shapes, tmp_path/'run', {MIDDLE:raises(KeyboardInterrupt())})
    tuned(shapes, tmp_path/'run')
    assert {p.suffix for p in (tmp_path/'run').iterdir()}<={'.json', '.safetensors', ''}

class Disk:
    "A small disk, mounted where the system allows it; else full is a limit on the size of files, and read-only is a mode"
    def __init__(self, path):
        self.path,self.limit = path,resource.getrlimit(resource.RLIMIT_FSIZE)
        path.mkdir()
        self.mounted = self._run('mount', '-t', 'tmpfs', '-o', 'size=40m', 'tmpfs')
    def _run(self, *words): return not subprocess.run([*words, str(self.path)], capture_output=True).returncode
    def fill(self):
        if not self.mounted: return resource.setrlimit(resource.RLIMIT_FSIZE, (100, self.limit[1]))
        with (self.path/'filler').open('ab', buffering=0) as f, contextlib.suppress(OSError):
            while f.write(bytes(1<<14)): pass
    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)
        (self.path/'filler').unlink(missing_ok=True)
    def read_only(self, on=True):
        if self.mounted: assert self._run('mount', '-o', f'remount,{"ro" if on else "rw"}')
        else: os.chmod(self.path, 0o555 if on else 0o755)
    def close(self):
        self.free() if not self.mounted else self._run('umount', '-l')

@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path/'disk')
    yield disk
    disk.close()

def test_a_disk_that_fills_up(shapes, disk, capsys):
    whole = tuned(shapes)
    assert same(whole, tuned(shapes, disk.path/'run', {('finetune', i):disk.fill for i in range(1, 9)}))
    said = capsys.readouterr().err
    assert 'was not saved' in said and 'Training goes on; the last saved state is' in said and 'Free space' in said
    kept = states._latest_state(disk.path/'run')[1]
    assert kept['phase']=='finetune' and not kept['done'] and not list((disk.path/'run').glob('.state*'))
    disk.free()
    assert same(whole, tuned(shapes, disk.path/'run'))
    assert states._latest_state(disk.path/'run')[1]['done']

def test_a_disk_that_is_full(shapes, disk):
    learn = learner(shapes)
    disk.fill()
    with pytest.raises(FolderError, match='cannot be written to') as e: tuned(None, disk.path/'run', learn=learn)
    disk.free()
    assert 'Free space in it, or pass another folder' in str(e.value) and 'Exception occured' not in str(e.value)

def test_a_folder_that_is_read_only(shapes, disk):
    if not disk.mounted and os.geteuid()==0: pytest.skip('root writes anywhere, and no disk can be mounted')
    with pytest.raises(KeyboardInterrupt): tuned(shapes, disk.path/'run', {MIDDLE:raises(KeyboardInterrupt())})
    disk.read_only()
    for folder in ('run', 'new'):
        with pytest.raises(FolderError, match='cannot be written to'): tuned(shapes, disk.path/folder)
    disk.read_only(False)
    assert same(tuned(shapes), tuned(shapes, disk.path/'run'))

class Spoil(Callback):
    at = None
    def before_batch(self):
        if self.training and (self.learn.phase, self.train_iter)==Spoil.at: self.learn.xb = (self.x*float('nan'),)

def test_a_loss_that_is_no_number(shapes, tmp_path):
    Spoil.at = 'finetune', 4
    learn = learner(shapes)
    names = set(learn.spec.rows.item)
    with pytest.raises(FitError) as e: tuned(None, tmp_path/'run', cbs=[Spoil()], learn=learn)
    said = str(e.value)
    assert 'loss is nan in epoch 2, step 2 of 3, at learning rate' in said and sum(n in said for n in names)==4 and "up to 'finetune', epoch 2 of 2, step 1" in said
    assert all(v.isfinite().all() for v in learn.model.state_dict().values())
    Spoil.at = None
    assert same(tuned(shapes, cbs=[Spoil()]), tuned(shapes, tmp_path/'run', cbs=[Spoil()]))

def test_memory_that_runs_out(shapes, tmp_path):
    with pytest.raises(FitError) as e: tuned(shapes, tmp_path/'run', {MIDDLE:lambda: torch.empty(2**46)})
    assert all(w in str(e.value) for w in ('batch_size=2', 'Accumulate(4)', 'freeze_to', 'Autocast', 'up to'))
    assert same(tuned(shapes), tuned(shapes, tmp_path/'run'))

def test_one_process_a_folder(shapes, tmp_path):
    from filelock import FileLock
    (tmp_path/'run').mkdir()
    with FileLock(tmp_path/'run'/'.lock'), pytest.raises(FitError, match='Another process'): tuned(shapes, tmp_path/'run')

CELL = """
from sft_nb.all import *
from fastai.callback.core import Callback
import hashlib, time
class Slow(Callback):
    def before_batch(self): print('step', flush=True); time.sleep(PAUSE)
def run(folder=None):
    learn = sft_learner(load_data('image', SHAPES, size=64, valid=.25, batch_size=4, checkpoint='timm:test_resnet', pretrained=False))
    with learn.no_bar(): learn.fine_tune(3, 1e-2, freeze_epochs=1, cbs=[Slow(), *([Resume(folder, every=1)] if folder else [])])
    print('weights', hashlib.sha256(b''.join(v.numpy().tobytes() for v in learn.model.state_dict().values())).hexdigest())
"""

def test_an_interrupted_cell_of_a_notebook(shapes, tmp_path):
    "The stop button of Jupyter sends an interrupt to the kernel; the same cell goes on"
    here,kept = Path(__file__).parent,f"run({str(tmp_path/'run')!r})"
    cells = [[CELL.replace('SHAPES', repr(str(shapes))).replace('PAUSE', '.15'), None], [kept, 6], [kept, None], ['run()', None]]
    r = subprocess.run([sys.executable, here/'kernel.py'], input=json.dumps(cells), env={**os.environ, 'PYTHONPATH':str(here.parent), 'OMP_NUM_THREADS':'1'}, capture_output=True, text=True)
    assert not r.returncode, r.stderr
    first,stopped,again,whole = json.loads(r.stdout.splitlines()[-1])
    assert first[0] is None and stopped[0]=='KeyboardInterrupt' and 'the same call goes on from there' in stopped[1]
    assert again[0] is whole[0] is None and 'Resume: going on at' in again[1]
    assert again[1].count('step')<whole[1].count('step') and again[1].split('weights ')[1]==whole[1].split('weights ')[1]
