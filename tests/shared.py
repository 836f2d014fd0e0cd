"""Runs of several processes: everything is imported once, each process of a run is a fork that finds itself launched as torchrun launches it

A run trains the toy of a task; what it ends with is written by each process into its own file, so that a test can compare processes, runs of one process and of two,
and runs that were killed. A process may be told to do something at a step: die by SIGKILL, stand still, get a signal, raise."""
import json, os, signal, socket, sys, time, traceback
from pathlib import Path
import numpy as np, torch
from fastai.callback.core import Callback
from safetensors.torch import load_file, save_file
from sft_nb.training import cache
from sft_nb.core.basics import process_rank
from sft_nb.data.task import get_task
from sft_nb.data.load import load_data
from sft_nb.training.learner import sft_learner
from sft_nb.training.adapters import add_adapter
from sft_nb.training.callbacks import Accumulate, checkpoint_activations, KeepBest
from sft_nb.training.resume import Resume
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.deployment.predictor import save_predictor
from sft_nb.tasks.toys import make_toy

DEEDS = dict(kill=lambda: os.kill(os.getpid(), signal.SIGKILL), stop=lambda: os.kill(os.getpid(), signal.SIGSTOP), term=lambda: os.kill(os.getpid(), signal.SIGTERM),
             fail=lambda: (_ for _ in ()).throw(ValueError('this process has a fault')))

RATES = ('dropout','activation_dropout','attention_dropout','layerdrop','encoder_layerdrop','decoder_layerdrop')

FSDP = dict(ACCELERATE_USE_FSDP='true', FSDP_VERSION='2', FSDP_CPU_RAM_EFFICIENT_LOADING='true')  # the last as `accelerate launch` sets it

class Act(Callback):
    "Does something before a step of this process; nothing of it is among the settings of the run"
    todo = None
    def before_batch(self):
        if not self.training or not Act.todo: return
        deed,left = Act.todo
        Act.todo = (deed, left-1)
        if left==1: DEEDS[deed]()

def without_dropout(model):
    "A model that draws no random numbers"
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
        for k in RATES:
            if isinstance(getattr(m, k, None), float): setattr(m, k, 0.)

def learner(toy, task, how, cbs):
    load = dict(valid=.25, batch_size=how.get('batch_size', 4), checkpoint=toy['checkpoint'], pretrained=toy.get('pretrained', True))
    if task=='image_text': load.update(size=64, augment=False)
    if task=='image': load.update(size=64, augment=False, checkpoint=how.get('checkpoint', 'timm:test_vit'), pretrained=False)
    learn = sft_learner(load_data(task, toy['source'], **{**load, **how.get('load', {})}), cbs=cbs, **how.get('learner', {}))
    if not how.get('dropout'): without_dropout(learn.model)
    if how.get('adapter'): add_adapter(learn, how['adapter'], dropout=0.)
    return checkpoint_activations(learn) if how.get('checkpointing') else learn

def train(task, home, out, how):
    whole = task in ('translation','speech','chat','tokens','audio')  # these toys make a folder wholly or not at all: one for each process
    toy = make_toy(task, Path(f'{out}-{process_rank()}-toy') if whole else home/f'toy-{task}', **how.get('toy', {}))
    Act.todo,cbs = how.get('act', {}).get(process_rank()),[Act()]
    if how.get('resume'): cbs.append(Resume(how['resume'], every=how.get('every', 1)))
    learn = learner(toy, task, how, cbs)
    fit = dict(cbs=Accumulate(8)) if how.get('accumulate') else {}
    if how['way']=='live': (learn if how.get('adapter') else learn.freeze_to(0)).fit_one_cycle(2, 5e-3, **fit)
    elif how['way']=='head': learn.fit_head(3, **fit)
    elif how['way']=='still': learn.freeze_to(0).fit(1, 0., wd=0., **fit)
    elif how['way']=='best': learn.freeze_to(0).fit(3, .3, cbs=KeepBest('valid_loss'))
    elif how['way']=='norms': learn.fine_tune(2, 5e-3, freeze_epochs=1, norm_eval=True)
    elif how['way']=='gradual': learn.gradual_unfreeze(1, stages=2, **fit)
    else: learn.fine_tune(2, 5e-3, **(dict(freeze_epochs=1) if how['way']=='steps' else {}), **fit)
    return learn

def job(task, home, out, how):
    "What one process does"
    fills,fill = [],cache._fill
    cache._fill = lambda *args: (fills.append(1), fill(*args))
    learn = train(task, home, out, how)
    save_file({k:v.clone().contiguous() for k,v in learn.model.state_dict().items()}, f'{out}-{process_rank()}.safetensors')
    ev = evaluate(learn, on='valid').metrics if how.get('evaluate') else {}
    if how.get('save'): save_predictor(learn, f'{out}-model-{process_rank()}')
    rows = [{k:v for k,v in h.items() if k!='seconds'} for h in learn.history]
    trains = [n for n,p in learn.model.named_parameters() if p.requires_grad]
    Path(f'{out}-{process_rank()}.json').write_text(json.dumps(dict(history=rows, fills=len(fills), evaluate=ev, trains=trains, group=torch.distributed.is_initialized())))

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def _fork(rank, n, port, out, f):
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        if n>1: os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        sys.stdout,sys.stderr = (open(f'{out}-{rank}.{o}', 'w', buffering=1) for o in ('out', 'err'))
        os.dup2(sys.stderr.fileno(), 2)
        f()
        code = 0
    except SystemExit as e: code = e.code
    except BaseException: traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

def launched(n, out, f, left=30):
    "Fork `n` processes; returns the exit code of each (-9: killed), and how long the others lived after the first that did not end well"
    port,codes,first = free_port(),{},None
    pids = {_fork(r, n, port, out, f):r for r in range(n)}
    try:
        while len(codes)<n:
            for p,r in pids.items():
                pid,status = (0, 0) if r in codes else os.waitpid(p, os.WNOHANG|os.WUNTRACED)
                if not pid: continue
                if not os.WIFSTOPPED(status): codes[r] = os.waitstatus_to_exitcode(status)
                if codes.get(r, 1): first = first or time.monotonic()
            alive = [p for p,r in pids.items() if r not in codes]
            if first and alive and (time.monotonic()-first>left or len(alive)==1 and _stands(alive[0])): os.kill(alive[0], signal.SIGKILL)
            time.sleep(.02)
    finally:
        for p,r in pids.items():
            if r not in codes: os.kill(p, signal.SIGKILL)
    return [codes[r] for r in range(n)],time.monotonic()-first if first else 0.

def _stands(pid): return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]=='T'

def run(task, folder, name, n, **how):
    "A run in a folder: exit codes, seconds after the first failure, what each process has left"
    os.environ['SFT_NB_HOME'] = str(folder/how.pop('home', name)/'home')
    os.environ['SFT_NB_TIMEOUT'] = str(how.pop('timeout', 60))
    out,env = folder/name,FSDP if how.pop('fsdp', False) else {}
    codes,seconds = launched(n, out, lambda: (os.environ.update(env), job(task, folder, out, how)))
    left = [json.loads(Path(f'{out}-{r}.json').read_text()) if not c else None for r,c in enumerate(codes)]
    return dict(codes=codes, seconds=seconds, left=left, said=[[Path(f'{out}-{r}.{o}').read_text() for o in ('out','err')] for r in range(n)],
                weights=[load_file(f'{out}-{r}.safetensors') if not c else None for r,c in enumerate(codes)])

def well(r):
    "A run of which every process ended well"
    assert not any(r['codes']), '\n'.join(e for _,e in r['said'])
    return r

def curve(r, rank=0):
    "`(epoch, number)` of the history that a process has left"
    return np.array([[v for _,v in sorted(h.items()) if isinstance(v, float)] for h in r['left'][rank]['history']])
