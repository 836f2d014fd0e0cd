"""Every task on one GPU in a few minutes: trained, cached, resumed, evaluated, saved and predicted, each against the CPU; then speed and memory against a plain loop and Trainer.

    python tools/gpu_check.py                       # on CUDA, networks of real size with random weights that are made here; nothing is fetched
    python tools/gpu_check.py --device cpu          # the same on miniature networks, to see that the check itself works
    python tools/gpu_check.py --tasks image text --out gpu.md --seconds 450   # no check begins later; what is left stands in the table as not run

On a machine without a network that has torch, transformers, timm, accelerate, pandas, scikit-learn and matplotlib, the rest comes along in a folder of wheels:

    pip download --no-deps -d wheels fastai fastcore fastdownload 'fastprogress<1.1' fasttransform 'plum-dispatch<2.10' beartype platformdirs soundfile cffi jiwer rapidfuzz
    pip install --no-index --no-deps --target site wheels/*.whl && PYTHONPATH=site python tools/gpu_check.py

A line per check, a table at the end, status 1 where a check failed. Nothing is skipped in silence: what a device cannot do (float16 on a CPU) stands in the table as such.
"""
import argparse, contextlib, functools, os, shutil, sys, tempfile, time, traceback
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT/'tests')]
import numpy as np, pandas as pd, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.torch_core import default_device
from sft_nb.data.load import load_data
from sft_nb.training import cache, cache_store
from sft_nb.training.cache import frozen_cache
from sft_nb.training.callbacks import Autocast, has_bfloat16, PinnedBatches
from sft_nb.training.learner import sft_learner
from sft_nb.training.resume import Resume
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.tasks.small_nets import small_llama, small_marian, small_whisper, word_pieces
from sft_nb.tasks.toys import make_toy
from shared import without_dropout

WORDS = 'river stone cloud window garden letter winter music market silver summer bridge forest candle mirror'.split()
CLOSE = dict(float32=1e-3, bfloat16=5e-2, float16=5e-2)
COMPILED = ('text',)  # compiling takes about a minute per network
STEPS = 6

# Data and networks

def sentences(n, words, seed=0):
    rng = np.random.default_rng(seed)
    return [' '.join(rng.choice(WORDS, words)) for _ in range(n)]

def bert(folder):
    from transformers import BertConfig, BertModel
    tok = word_pieces([' '.join(WORDS)])
    tok.model_max_length = 512
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tok), pad_token_id=0)).save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)

def pictures(folder, n, side):
    from PIL import Image
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(n): Image.fromarray((rng.random((side, side, 3))*(120 if i%2 else 255)).astype(np.uint8)).save(folder/f'{i}.jpg')
    return [str(folder/f'{i}.jpg') for i in range(n)]

def sounds(folder, n):
    from soundfile import write
    folder.mkdir(parents=True)
    for i in range(n): write(folder/f'{i}.wav', (.3*np.sin(np.arange(32_000)*(.05+.1*(i%2)))).astype(np.float32), 16_000)
    return [str(folder/f'{i}.wav') for i in range(n)]

def real(task, folder, n=96):
    "(rows, checkpoint, options) of a task, with a network of real size"
    labels,side = ['even','odd']*(n//2),dict(size=224, augment=False)
    resnet = 'timm:resnet50'
    if task=='image': return dict(image=pictures(folder/'p', n, 256), label=labels),resnet,side
    if task=='text': return dict(text=sentences(n, 100), label=labels),bert(folder/'bert'),dict(max_length=128)
    if task=='image_text': return dict(image=pictures(folder/'p', n, 256), text=sentences(n, 30), label=labels),f"{resnet}+{bert(folder/'bert')}",dict(side, max_length=64)
    if task=='translation': return dict(source=sentences(n, 30), target=sentences(n, 30, 1)),small_marian(WORDS, folder/'marian', size=200, width=512, layers=6),{}
    if task=='speech': return dict(audio=sounds(folder/'s', n), text=sentences(n, 5)),small_whisper(folder/'whisper', width=512, layers=6, seconds=30),{}
    if task=='audio': return dict(audio=sounds(folder/'s', n), label=labels),small_whisper(folder/'whisper', width=512, layers=6, seconds=30),{}
    if task=='tokens':
        words = [o.split() for o in sentences(n, 40)]
        return dict(tokens=words, tags=[['B-PLACE' if o in WORDS[:4] else 'O' for o in row] for row in words]),bert(folder/'bert'),{}
    if task=='chat':
        net = small_llama(WORDS, folder/'llama', width=576, layers=30, longest=1024, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536)
        return dict(prompt=sentences(n, 40), completion=sentences(n, 20, 1)),net,{}
    raise SystemExit(f'--tasks {task}: valid are {", ".join(TASKS)}')

TASKS = ('image', 'text', 'image_text', 'translation', 'speech', 'chat', 'tokens', 'audio')

def made(task, folder, size):
    "A function of (device, dropout, arguments of `sft_learner`) that gives a learner; the random numbers of a GPU are others, so that only runs on one device are equal with dropout"
    if size=='tiny':
        toy = make_toy(task, folder/'toy')
        source,checkpoint,options,pretrained,batch = toy['source'],toy['checkpoint'],toy['load'],toy['pretrained'],4
    else:
        rows,checkpoint,options = real(task, folder)
        source,pretrained,batch = pd.DataFrame(rows),not str(checkpoint).startswith('timm:'),8
    def learner(device, dropout=False, **kw):
        default_device(device.type!='cpu')
        dls = load_data(task, source, checkpoint=str(checkpoint), pretrained=pretrained, batch_size=batch, seed=0, **{**options, 'valid':.25, 'augment':False})
        dls.to(device)
        learn = sft_learner(dls, seed=1, **kw)
        if not dropout: without_dropout(learn.model)
        learn.model.to(device)
        return learn
    return learner

# Checks; each returns what it found, or raises

class Losses(Callback):
    "The loss of each step of the first few"
    order,run_valid = 50,False
    def __init__(self, steps=STEPS): self.steps,self.found = steps,[]
    def before_fit(self): self.found = []
    def after_loss(self): self.found.append(self.learn.loss.detach().float().mean())
    def after_batch(self):
        if len(self.found)>=self.steps: raise CancelFitException()

@contextlib.contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging(): yield learn

def losses(learn, cbs=(), steps=STEPS):
    "At a rate at which what rounding does to one step is not blown up by those that follow"
    seen = Losses(steps)
    with quiet(learn): learn.fit(3, 1e-5, cbs=[seen, *cbs])
    return np.array([float(o) for o in seen.found])

def apart(a, b): return float(np.max(np.abs(np.asarray(a, float)-np.asarray(b, float))/np.maximum(np.abs(np.asarray(b, float)), 1e-6)))

def near(a, b, most):
    d = apart(a, b)
    assert np.all(np.isfinite(a)) and d<=most, f'apart by {d:.2g}, {most:g} allowed: {np.round(a, 5).tolist()} against {np.round(b, 5).tolist()}'
    return f'{d:.1e}'

def precision(name):
    "Callbacks for a precision"
    from fastai.callback.fp16 import MixedPrecision
    return [] if name=='float32' else [Autocast()] if name=='bfloat16' else [MixedPrecision()]

class NotHere(Exception): "What a device cannot do"

def cannot(name, device):
    if name=='float16' and device.type!='cuda': return 'needs CUDA'
    if name=='bfloat16' and not has_bfloat16(device): return 'not in the hardware'

def trained(make, device, reference, name):
    if why := cannot(name, device): raise NotHere(why)
    return near(losses(make(device, freeze=None), precision(name)), reference(), CLOSE[name])

@contextlib.contextmanager
def tf32():
    "Products of float32 with the first 10 bits of the mantissa, on GPUs that have it"
    found = torch.backends.cuda.matmul,torch.backends.cudnn
    for o in found: o.allow_tf32 = True
    try: yield
    finally:
        for o in found: o.allow_tf32 = False

def in_tf32(make, device, reference):
    if device.type!='cuda': raise NotHere('needs CUDA')
    with tf32(): return near(losses(make(device, freeze=None)), reference(), 1e-2)

def from_pinned(make, device, reference):
    if device.type!='cuda': raise NotHere('needs CUDA')
    return near(losses(make(device, freeze=None), [PinnedBatches()]), reference(), CLOSE['float32'])

def compiled(make, device):
    "What trains above the cache, compiled by torch"
    if device.type=='cpu' and not shutil.which(os.environ.get('CXX', 'g++')): raise NotHere('needs a C++ compiler')
    def run(compiling):
        learn = make(device)
        if compiling: learn.model.compile()
        with frozen_cache(learn): return losses(learn)
    return near(run(True), run(False), CLOSE['float32'])

def from_cache(make, device, name):
    "Cached = live"
    if why := cannot(name, device): raise NotHere(why)
    def run(cached):
        learn = make(device)
        with frozen_cache(learn) if cached else contextlib.nullcontext(): return losses(learn, precision(name))
    return near(run(True), run(False), 1e-4 if name=='float32' else CLOSE[name])

def stopped_after(learn, steps):
    "Break a fit off as Ctrl-C does"
    one,done = learn.one_batch,[]
    def batch(*args):
        one(*args)
        done.append(args)
        if len(done)==steps: raise KeyboardInterrupt
    learn.one_batch = batch
    return learn

def tuned(make, device):
    "Heads that are solved for, or trained from the cache, give the classes that the CPU finds; then the default to its end"
    heads = []
    for d in (device, torch.device('cpu')):
        learn = make(d)
        with quiet(learn): learn.fit_head(*[1]*(learn.model.above_body!='head'))
        heads.append(evaluate(learn))
    share = same(*(ev.rows.prediction for ev in heads), heads[1], 'float32')
    with quiet(make(device)) as learn: learn.fine_tune(1)
    values = pd.DataFrame(learn.history)[['train_loss','valid_loss']].to_numpy(float)
    assert len(values)>1 and np.isfinite(values).all(), values
    return f'{share}, {len(values)} epochs'

def sure(ev, by):
    "Rows whose best class is ahead of the next by more than what a precision moves; None where what is written has no such margin"
    if by==0 or ev.probabilities is None or np.ndim(ev.probabilities)!=2: return None if by else np.ones(len(ev), bool)
    top = np.sort(np.asarray(ev.probabilities, float), 1)
    return top[:,-1]-top[:,-2]>by

def same(a, b, ev, name):
    "Share of equal predictions; in lower precision among the rows of `ev` that are sure"
    on = sure(ev, 0 if name=='float32' else CLOSE[name])
    if on is None: return 'losses alone: what is written turns on the smallest differences'
    if not on.any(): return 'losses alone: no row is sure'
    share = float((a.astype(str).to_numpy()==b.astype(str).to_numpy())[on].mean())
    assert share>=.9, f'{100*share:.0f} % of the predictions are the same'
    return f'{100*share:.0f} % of {on.sum()} same'

def computing_in(name, device): return contextlib.nullcontext() if name=='float32' else torch.autocast(device.type, getattr(torch, name))

def resumed(make, device, folder, name):
    "Stopped after two steps, and gone on with by a new learner"
    if why := cannot(name, device): raise NotHere(why)
    def weights(learn): return torch.cat([p.detach().float().flatten().cpu() for p in learn.model.parameters() if p.requires_grad]).double()
    whole = make(device, dropout=True)
    with quiet(whole): whole.fit(2, 1e-3, cbs=precision(name))
    first = stopped_after(make(device, dropout=True, cbs=Resume(folder, every=1)), 2)
    with contextlib.suppress(KeyboardInterrupt), quiet(first): first.fit(2, 1e-3, cbs=precision(name))
    again = make(device, dropout=True, cbs=Resume(folder, every=1))
    with quiet(again): again.fit(2, 1e-3, cbs=precision(name))
    a,b = weights(again),weights(whole)
    d = float((a-b).norm()/b.norm())
    assert d<(1e-5 if name=='float32' else 1e-3), f'weights apart by {d:.2g}'
    return 'bit for bit' if torch.equal(a, b) else f'{d:.1e}'

def judged(make, device, on_cpu, name):
    "Evaluation on the device, in some precision, and on the CPU"
    if why := cannot(name, device): raise NotHere(why)
    with computing_in(name, device): a = evaluate(make(device))
    b = on_cpu()
    near(a.rows.loss.fillna(0), b.rows.loss.fillna(0), 1e-2 if name=='float32' else CLOSE[name])
    return same(a.rows.prediction, b.rows.prediction, b, name)

def predicted(make, device, folder, name):
    "A saved folder, opened on the device, against the learner it came from"
    if why := cannot(name, device): raise NotHere(why)
    learn = make(device)
    save_predictor(learn, folder)
    rows = learn.spec.split('valid')
    model = load_predictor(folder, device=str(device))
    assert next(model.model.parameters()).device.type==device.type
    with computing_in(name, device): got,ev = model.predict(rows[list(learn.spec.task.input_columns)], batch_size=learn.dls.bs),evaluate(learn)
    return same(got.prediction, ev.rows.prediction, ev, 'float32')

# Speed and memory

def clocked(run, device, steps):
    "Steps per second of `run(steps)` after two to warm up, and the most memory in MB"
    wait = torch.cuda.synchronize if device.type=='cuda' else lambda: None
    run(2)
    wait()
    if device.type=='cuda': torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    run(steps)
    wait()
    return steps/(time.perf_counter()-begun),torch.cuda.max_memory_allocated()/1e6 if device.type=='cuda' else float('nan')

def batches(learn, n):
    "`n` batches, again and again from the front"
    while n>0:
        for b in learn.dls.train:
            yield b
            n -= 1
            if n<=0: return

def plain_loop(learn, name):
    "A loop over the same batches with AdamW"
    model,opt = learn.model,torch.optim.AdamW([p for p in learn.model.parameters() if p.requires_grad], 1e-4)
    kind = next(model.parameters()).device.type
    def run(steps):
        model.train()
        for b in batches(learn, steps):
            x,y = b[:learn.dls.n_inp],b[learn.dls.n_inp:]
            with torch.autocast(kind, torch.bfloat16) if name=='bfloat16' else contextlib.nullcontext(): loss = learn.loss_func(model(*x), *y)
            loss.mean().backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
    return run

def ours_loop(learn, name):
    def run(steps): losses(learn, precision(name), steps)
    return run

def compiled_loop(learn, name):
    learn.model.compile()
    return ours_loop(learn, name)

def tf32_loop(learn, name):
    def run(steps):
        with tf32(): losses(learn, steps=steps)
    return run

def pinned_loop(learn, name):
    def run(steps):
        losses(learn, [*precision(name), PinnedBatches()], steps)
    return run

def options(task, name, device):
    "Ways of ours that a device has"
    out = dict(TF32=tf32_loop) if device.type=='cuda' and name=='float32' else {}
    if device.type=='cuda': out['pinned'] = pinned_loop
    if device.type=='cuda' and task in COMPILED: out['compiled'] = compiled_loop
    return out

def trainer_loop(learn, name, folder):
    "transformers' Trainer over the same network of texts"
    from transformers import AutoTokenizer, BertForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments
    tok = AutoTokenizer.from_pretrained(learn.spec.checkpoint.folder)
    rows = learn.spec.split('train')
    data = [dict(tok(t, truncation=True, max_length=128), labels=learn.spec.vocab.index(y)) for t,y in zip(rows.text, rows.label)]
    net = BertForSequenceClassification.from_pretrained(learn.spec.checkpoint.folder, num_labels=len(learn.spec.vocab))
    def run(steps):
        args = TrainingArguments(str(folder), max_steps=steps, per_device_train_batch_size=learn.dls.bs, report_to=[], save_strategy='no', logging_strategy='no', disable_tqdm=True,
                                 bf16=name=='bfloat16', use_cpu=learn.dls.device.type=='cpu')
        Trainer(net, args, train_dataset=data, data_collator=DataCollatorWithPadding(tok)).train()
    return run

def speed(task, make, device, folder, steps):
    "Rows for the table of speed"
    out = []
    for name in ('float32', 'bfloat16'):
        if cannot(name, device): continue
        ways = dict(ours=ours_loop, loop=plain_loop, **(dict(Trainer=lambda l,n: trainer_loop(l, n, folder/'trainer')) if task=='text' else {}), **options(task, name, device))
        found = {}
        for way,f in ways.items():
            learn = make(device, dropout=True, freeze=None)
            found[way] = clocked(f(learn, name), device, steps)
            del learn
            if device.type=='cuda': torch.cuda.empty_cache()
        ours = found['ours'][0]
        out += [dict(task=task, precision=name, way=w, steps_per_second=round(s, 2), ours_faster_by=round(ours/s, 2), peak_mb=None if np.isnan(m) else round(m)) for w,(s,m) in found.items()]
    return out

# All of it

class Found:
    "The rows of both tables, and when to end"
    def __init__(self, seconds): self.rows,self.speeds,self.begun,self.seconds = [],[],time.perf_counter(),seconds
    def took(self): return time.perf_counter()-self.begun
    def check_time(self):
        if self.seconds is not None and self.took()>=self.seconds: raise NotHere('no time left')

def check(name, run, found, task):
    begun = time.perf_counter()
    try:
        found.check_time()
        result,words = 'ok',run()
    except NotHere as e: result,words = 'not run',str(e)
    except Exception as e:
        result,words = 'FAILED',f'{type(e).__name__}: {str(e)[:300]}'
        traceback.print_exc()
    found.rows.append(dict(task=task, check=name, result=result, found=words, seconds=round(time.perf_counter()-begun, 1)))
    print(f'{result:8} {task:12} {name:36} {words}', flush=True)

def all_checks(task, device, size, folder, found, steps):
    make = made(task, folder, size)
    reference = functools.cache(lambda: losses(make(torch.device('cpu'), freeze=None)))
    on_cpu = functools.cache(lambda: evaluate(make(torch.device('cpu'))))
    for name in CLOSE: check(f'training in {name}', lambda n=name: trained(make, device, reference, n), found, task)
    check('training in TF32', lambda: in_tf32(make, device, reference), found, task)
    check('pinned, copied without waiting', lambda: from_pinned(make, device, reference), found, task)
    if task in COMPILED: check('compiled = as it is', lambda: compiled(make, device), found, task)
    check('heads and the default', lambda: tuned(make, device), found, task)
    for name in CLOSE:
        check(f'cached = live in {name}', lambda n=name: from_cache(make, device, n), found, task)
        check(f'resumed = whole in {name}', lambda n=name: resumed(make, device, folder/f'run-{n}', n), found, task)
        check(f'evaluated in {name}', lambda n=name: judged(make, device, on_cpu, n), found, task)
        check(f'saved, opened, predicted in {name}', lambda n=name: predicted(make, device, folder/f'saved-{n}', n), found, task)
    begun = time.perf_counter()
    def row(result, e): found.rows.append(dict(task=task, check='speed', result=result, found=str(e)[:300], seconds=round(time.perf_counter()-begun, 1)))
    try:
        found.check_time()
        found.speeds += speed(task, make, device, folder, steps)
    except NotHere as e: row('not run', e)
    except Exception as e:
        traceback.print_exc()
        row('FAILED', e)

def markdown(rows):
    cols = list(rows[0])
    return '\n'.join(['| '+' | '.join(cols)+' |', '|'+'---|'*len(cols), *('| '+' | '.join('' if r[c] is None else str(r[c]) for c in cols)+' |' for r in rows)])

def machine(device):
    import timm, transformers, fastai
    what = torch.cuda.get_device_name() if device.type=='cuda' else 'CPU'
    return f'{what}; torch {torch.__version__}, transformers {transformers.__version__}, timm {timm.__version__}, fastai {fastai.__version__}'

def report(device, size, found):
    return f'{machine(device)}; {size} networks; {found.took():.0f} s\n\n{markdown(found.rows)}\n\n{markdown(found.speeds) if found.speeds else "Speed was not measured."}\n'

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cuda')
    p.add_argument('--size', choices=['real', 'tiny'], help='of the networks; default: real on a GPU, tiny on a CPU')
    p.add_argument('--tasks', nargs='*', default=list(TASKS), choices=list(TASKS))
    p.add_argument('--steps', type=int, default=20, help='of each measurement of speed')
    p.add_argument('--out', help='a Markdown file for the tables, written after each task')
    p.add_argument('--seconds', type=float, help='after which no further check begins; default: no end')
    a = p.parse_args()
    try: torch.zeros(1, device=a.device)
    except (RuntimeError, AssertionError) as e: raise SystemExit(f'--device {a.device} cannot be used: {str(e).splitlines()[0]}')
    device,found = torch.device(a.device),Found(a.seconds)
    size = a.size or ('tiny' if device.type=='cpu' else 'real')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as d:
        cache.cache_folder = cache_store.cache_folder = lambda: Path(d)/'cache'
        for task in a.tasks:
            all_checks(task, device, size, Path(d)/task, found, a.steps)
            if a.out: Path(a.out).write_text(report(device, size, found))
    print('\n'+report(device, size, found))
    return int(any(r['result']=='FAILED' for r in found.rows))

if __name__=='__main__': raise SystemExit(main())
