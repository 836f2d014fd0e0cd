"""Trains the toys of tasks in processes that are killed again and again: python killed.py TASK,TASK FOLDER KILLS SEED

Everything is imported once; each process is a fork, which dies by a real SIGKILL: at a random moment, sent from outside, or at a random one of the places that matter,
sent to itself: in the writing of a state, between the stages, after a step. Prints as JSON how often it was killed where, how often a run went on in the middle of an epoch,
and whether weights and losses are those of a run that was left alone."""
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from fastai.optimizer import Optimizer
from safetensors.torch import load_file, save_file
from sft_nb.training import cache, resume, resume_files as states
from sft_nb.data.task import get_task
from sft_nb.data.load import load_data
from sft_nb.training.learner import sft_learner, SFTLearner
from sft_nb.training.callbacks import Accumulate, KeepBest
from sft_nb.training.resume import Resume
from sft_nb.tasks.toys import make_toy

PLACES = dict(save=[(states, 'save_file'), (os, 'fsync'), (os, 'replace'), (os, 'chmod'), (resume, '_prune_states')],
              stage=[(SFTLearner, 'freeze_to'), (SFTLearner, 'create_opt'), (cache, '_fill')], step=[(Optimizer, 'step')])

def arm(place, n):
    "SIGKILL for this process at the n-th call of one of the functions, before or after it"
    left = [n]
    def wrap(f):
        def inner(*args, **kwargs):
            left[0] -= 1
            if left[0]==0: os.kill(os.getpid(), signal.SIGKILL)
            out = f(*args, **kwargs)
            left[0] -= 1
            if left[0]==0: os.kill(os.getpid(), signal.SIGKILL)
            return out
        return inner
    for owner,name in PLACES[place]: setattr(owner, name, wrap(getattr(owner, name)))

def learner(toy, cbs):
    augment = dict(augment=True) if 'augment' in toy['load'] else {}
    dls = load_data(toy['task'], toy['source'], checkpoint=toy['checkpoint'], pretrained=toy.get('pretrained', True), batch_size=2, **{**toy['load'], **augment})
    learn = sft_learner(dls, cbs=cbs)
    for c in [o for o in learn.cbs if type(o).__name__=='ProgressCallback']: learn.remove_cb(c)
    learn.logger = lambda *_: None
    return learn

def train(toy, folder=None, every=1):
    "Two calls, three or more fits: the head from the cache, then more and more; what the last one ends with is not put back to an earlier epoch"
    learn = learner(toy, [Resume(folder, every=every)] if folder else [])
    learn.fit_head(2, cbs=KeepBest('valid_loss'))
    if toy['task'].name=='image': learn.fine_tune(2, 5e-3, cbs=Accumulate(4))
    else: learn.gradual_unfreeze(1, stages=3)
    return learn

def process(f, kill_after=None):
    "Run `f` in a fork; True: it ended well, False: it was killed"
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2) if not os.environ.get('SHOW') else None
            f()
            code = 0
        except BaseException:
            import traceback
            Path(os.environ['SFT_NB_HOME'], 'error.txt').write_text(traceback.format_exc())
        finally: os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status)==signal.SIGKILL: return False
    if status: sys.exit(Path(os.environ['SFT_NB_HOME'], 'error.txt').read_text())
    return True

def plan(rng, seconds, kills):
    "Where the next process dies: the places in turn, a random moment in each"
    place = ('step', 'save', 'stage', 'step', 'moment', 'save')[kills%6]
    if place=='moment': return place, rng.uniform(0, seconds)
    return place, rng.randint(1, dict(save=60, stage=12, step=16)[place])

def in_the_middle(folder):
    "Whether the run in a folder goes on within an epoch"
    n,state,_ = states._latest_state(folder) if folder.exists() else (None,None,None)
    return bool(state) and not state['done'] and state['step']>0

def outcome(learn):
    "Weights and losses"
    losses = torch.tensor([[h['train_loss'], h['valid_loss']] for h in learn.history], dtype=torch.float64)
    weights = {k:v.clone(memory_format=torch.contiguous_format) for k,v in learn.model.state_dict().items()} # convolutions have their channels last, and some weights are tied
    return {**weights, 'losses of all epochs':losses}

def main(tasks, folder, kills, seed):
    torch.set_num_threads(1)
    for t in tasks.split(','): print(json.dumps(kill(t, Path(folder)/t, int(kills), int(seed))), flush=True)

def kill(task, folder, kills, seed):
    "Runs of one task until so many processes were killed"
    rng = random.Random(seed)
    os.environ['SFT_NB_HOME'] = str(folder/'home')
    (folder/'home').mkdir(parents=True)
    toy = dict(make_toy(task, folder/'toy'), task=get_task(task))
    begun = time.monotonic()
    process(lambda: save_file(outcome(train(toy)), folder/'whole.safetensors'))
    seconds,counts,runs,middle,equal = time.monotonic()-begun,{},0,0,[]
    whole = load_file(folder/'whole.safetensors')
    while sum(counts.values())<kills:
        runs,every = runs+1,rng.choice([1, 2, 3]) if runs else 1
        final,home = folder/f'{runs}.safetensors',folder/f'home{runs}'
        home.mkdir()
        os.environ['SFT_NB_HOME'] = str(home)
        while not final.exists():
            place,n = plan(rng, seconds, sum(counts.values()))
            if sum(counts.values())>=kills: place,n = 'none',None
            middle += in_the_middle(folder/f'run{runs}')
            def run():
                if place in PLACES: arm(place, n)
                learn = train(toy, folder/f'run{runs}', every)
                save_file(outcome(learn), folder/'part.safetensors')
                os.replace(folder/'part.safetensors', final)
            if not process(run, n if place=='moment' else None): counts[place] = counts.get(place, 0)+1
        got = load_file(final)
        equal.append(got.keys()==whole.keys() and all(torch.equal(got[k], v) for k,v in whole.items()))
    return dict(task=task, kills=sum(counts.values()), places=counts, middle=middle, runs=runs, equal=sum(equal), seconds=round(time.monotonic()-begun, 1))

if __name__=='__main__': main(*sys.argv[1:])
