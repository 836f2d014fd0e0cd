"""Side-by-side measurements; each peer runs in this process, in turn, on the same data and split.

    python benchmarks/run.py head whole step gradual   # measure; one JSON file each in benchmarks/results
    python benchmarks/run.py head --data digits --seeds 4 5   # more rows; those of the same data and seed are replaced
    python benchmarks/run.py whole --seeds 3 --alone --untimed   # accuracy alone, without peers, on a machine that does other work: joins the row
    python benchmarks/run.py table                     # write the table of benchmarks/README.md from them
"""
import argparse, contextlib, json, math, os, platform, random, re, resource, subprocess, sys, tempfile, time
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import numpy as np, torch
from torch import nn
from fastai.learner import Learner
from fastai.callback.schedule import *
from sft_nb.all import *
from sft_nb.checkpoints.assets import fetch
from sft_nb.checkpoints.references import open_checkpoint
from sft_nb.core.basics import write_atomic
from sft_nb.data.task import get_task
from sft_nb.core.fit_metrics import class_metrics
from sft_nb.evaluation.prediction import sorted_by_length
from sft_nb.tasks.demo_data import make_demo

here = Path(__file__).parent
results = here/'results'
DATA = ('amazon', 'digits')

def timed(f, *args, **kw):
    "(seconds of the processor, result)"
    start = time.process_time()
    out = f(*args, **kw)
    return time.process_time()-start, out

def demo(name):
    task = get_task('text' if name in ('amazon', 'tweets') else 'image')
    d = make_demo(task, Path(tempfile.gettempdir())/'sft_nb-bench')
    if name=='tweets': d = {**d, 'source':Path(d['source']).with_name('tweets.csv')}
    return task.name, d

def data(name, seed=42, **kw):
    task,d = demo(name)
    return load_data(task, d['source'], seed=seed, **{**d.get('load', {}), 'augment':False, **kw})

class Plain(nn.Module):
    "The network as timm or transformers builds it, from the same weights; nothing of ours is in it"
    def __init__(self, spec):
        super().__init__()
        n = len(spec.vocab)
        if spec.task.name=='text':
            from transformers import AutoModelForSequenceClassification
            self.net = AutoModelForSequenceClassification.from_pretrained(fetch('all-minilm-l6-v2'), num_labels=n)
            self.head = self.net.classifier
        else:
            self.net = open_checkpoint('pip:efficientnet-lite0', task='image').timm_model(num_classes=n)
            self.head = self.net.classifier
    def forward(self, x):
        if isinstance(x, dict): return self.net(input_ids=x['input_ids'], attention_mask=x['attention_mask']).logits
        return self.net(x)

def two_groups(m):
    ids = {id(p) for p in m.head.parameters()}
    return [[p for p in m.net.parameters() if id(p) not in ids], list(m.head.parameters())]

def fastai_learner(dls, seed, train_bn=True):
    seeded_all(seed)
    return Learner(dls, Plain(dls.sft), loss_func=nn.CrossEntropyLoss(), splitter=two_groups, train_bn=train_bn, metrics=class_metrics())

@contextlib.contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging(): yield

@contextlib.contextmanager
def cold_cache():
    "A new, empty cache of activations; fetched assets stay"
    from sft_nb.training import cache, cache_store
    with tempfile.TemporaryDirectory() as d:
        was = cache.cache_folder
        cache.cache_folder = cache_store.cache_folder = lambda: Path(d)
        try: yield
        finally: cache.cache_folder = cache_store.cache_folder = was

def seeded_all(seed):
    random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)

def accuracy(learn): return float(learn.validate()[1])

def bare_pass(dls, net):
    "One forward pass of the plain network over both sets, read and batched as we do it"
    net.eval()
    with torch.inference_mode():
        for part in ('train', 'valid'):
            rows,_ = sorted_by_length(dls.sft, dls.sft.split(part))
            for b in dls.sft.task.item_loader(dls.sft, rows, max(dls.bs, 32)): net(b[0] if isinstance(b, tuple) else b)

def bench_head(seeds=(1,2,3), names=DATA, alone=False):
    "Head phase: ours solves for the head, fastai trains it for 5 epochs, validation after each"
    for name in names:
        for seed in seeds:
            dls = data(name, seed)
            row = dict(data=name, seed=seed)
            def ours(learn):
                with quiet(learn): learn.fit_head()
                return learn
            def theirs(train_bn):
                seeded_all(seed)
                learn = fastai_learner(dls, seed, train_bn)
                with quiet(learn):
                    learn.freeze()
                    learn.fit_one_cycle(5, 1e-2)
                return learn
            net = Plain(dls.sft)
            bare_pass(dls, net)
            row['forward'],_ = timed(bare_pass, dls, net)
            with cold_cache():
                row['cold'],learn = timed(ours, sft_learner(dls, seed=seed))
                row['ours_accuracy'] = learn.history[-1]['accuracy']
                row['warm'],_ = timed(ours, sft_learner(dls, seed=seed))
            for bn in () if alone else (False, True):
                row[f'fastai_bn_{bn}'],learn = timed(theirs, bn)
                with quiet(learn): row[f'fastai_bn_{bn}_accuracy'] = accuracy(learn)
            yield row

def hf_trainer(dls, spec, seed, lr, epochs, out):
    "The usual recipe: the library's classifier, dynamic padding, AdamW, linear decay"
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed
    set_seed(seed)
    tok,at = spec.checkpoint.tokenizer(),{v:i for i,v in enumerate(spec.vocab)}
    def part(s):
        rows = spec.rows[spec.rows.split==s]
        enc = tok(list(rows.text), truncation=True, max_length=spec.preprocess['max_length'])
        return [dict(input_ids=i, attention_mask=m, labels=at[y]) for i,m,y in zip(enc['input_ids'], enc['attention_mask'], rows.label)]
    model = spec.checkpoint.hf_model(AutoModelForSequenceClassification, num_labels=len(at))
    args = TrainingArguments(out, num_train_epochs=epochs, learning_rate=lr, per_device_train_batch_size=16, per_device_eval_batch_size=64, eval_strategy='epoch',
                             save_strategy='no', logging_strategy='no', report_to=[], disable_tqdm=True, seed=seed, use_cpu=True)
    t = Trainer(model=model, args=args, train_dataset=part('train'), eval_dataset=part('valid'), data_collator=DataCollatorWithPadding(tok),
                compute_metrics=lambda p: dict(accuracy=float((p.predictions.argmax(-1)==p.label_ids).mean())))
    t.train()
    return t.evaluate()['eval_accuracy']

def bench_tune(seeds=(0,), names=('amazon',)):
    "The learning rate of the Trainer, chosen among three on a split that is not measured"
    for name in names:
        for seed in seeds:
            dls,row = data(name, seed),dict(data=name, seed=seed)
            for lr in (2e-5, 5e-5, 1e-4):
                with tempfile.TemporaryDirectory() as out: row[f'trainer_{lr}'],row[f'trainer_{lr}_accuracy'] = timed(hf_trainer, dls, dls.sft, seed, lr, 3, out)
            row['lr'] = max((2e-5, 5e-5, 1e-4), key=lambda lr: row[f'trainer_{lr}_accuracy'])
            yield row

def tuned():
    "The best rate of `bench_tune`"
    f = results/'tune.json'
    return json.loads(f.read_text())['rows'][0]['lr'] if f.exists() else 1e-4

def whole_pair(name, seed, peer=None):
    "Our defaults and a peer, a function of the data and the seed, on the same split"
    dls = data(name, seed)
    def ours():
        learn = sft_learner(dls, seed=seed)
        with quiet(learn): learn.fine_tune()
        return learn
    row = dict(data=name, seed=seed)
    with cold_cache(): row['ours'],learn = timed(ours)
    row['ours_accuracy'] = learn.history[-1]['accuracy']
    if peer: row[peer.__name__],row[f'{peer.__name__}_accuracy'] = timed(peer, dls, seed)
    return row

def bench_whole(seeds=(1,2,3,4,5), names=('amazon',), alone=False):
    "Whole runs: our defaults, Hugging Face Trainer (3 epochs, its best rate)"
    lr = tuned()
    def trainer(dls, seed):
        with tempfile.TemporaryDirectory() as out: return hf_trainer(dls, dls.sft, seed, lr, 3, out)
    for name in names:
        for seed in seeds: yield dict(whole_pair(name, seed, None if alone else trainer), trainer_lr=lr)

def bench_fine_tune(seeds=(1,2,3), names=('amazon',)):
    "Whole runs: our defaults, fastai's fine_tune(3)"
    def fastai(dls, seed):
        seeded_all(seed)
        learn = fastai_learner(dls, seed)
        with quiet(learn): learn.fine_tune(3, 1e-3)
        return float(learn.recorder.values[-1][2])
    for name in names:
        for seed in seeds: yield whole_pair(name, seed, fastai)

def bench_peak(seeds=(1,), names=('amazon',)):
    "Largest memory of a process that loads the data and trains once"
    code = "import sys; sys.path.insert(0, sys.argv[1]); import run; run.one(*sys.argv[2:4], int(sys.argv[4]))"
    for name in names:
        for seed in seeds:
            row = dict(data=name, seed=seed)
            for who in ('ours', 'trainer', 'fastai'):
                r = subprocess.run([sys.executable, '-c', code, here, who, name, str(seed)], capture_output=True, text=True, check=True)
                row[f'{who}_mb'] = int(r.stdout.strip().splitlines()[-1])
            yield row

def one(who, name, seed):
    "One whole run in this process; prints its peak memory in MB"
    dls = data(name, seed)
    if who=='trainer':
        with tempfile.TemporaryDirectory() as out: hf_trainer(dls, dls.sft, seed, tuned(), 3, out)
    else:
        learn = sft_learner(dls, seed=seed) if who=='ours' else fastai_learner(dls, seed)
        with quiet(learn), cold_cache(): learn.fine_tune() if who=='ours' else learn.fine_tune(3, 1e-3)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024)

def bench_gradual(seeds=(1,2,3), names=('amazon',)):
    "Gradual unfreezing over all groups, one epoch in each, with and without the cache"
    from sft_nb.training import schedule
    for name in names:
        for seed in seeds:
            dls,row = data(name, seed),dict(data=name, seed=seed)
            def run():
                learn = sft_learner(dls, seed=seed)
                with quiet(learn): learn.gradual_unfreeze(1, lr=1e-3, decay=.8)
                return learn
            with cold_cache(): row['cached'],learn = timed(run)
            row['cached_accuracy'] = learn.history[-1]['accuracy']
            was,schedule.frozen_cache = schedule.frozen_cache,lambda *a,**k: contextlib.nullcontext()
            try: row['live'],learn = timed(run)
            finally: schedule.frozen_cache = was
            row['live_accuracy'] = learn.history[-1]['accuracy']
            yield row

def bench_step(seeds=(1,2,3), names=DATA, n=12):
    "One training step of the whole network against a bare PyTorch loop, in turn on the same batches"
    for name in names:
        for seed in seeds:
            dls = data(name, seed)
            learn = sft_learner(dls, freeze=None, seed=seed)
            batches = [b for b,_ in zip(dls.train, range(n))]
            model,loss_func = Plain(dls.sft),nn.CrossEntropyLoss()
            opt = torch.optim.AdamW(model.parameters(), lr=1e-5)
            def bare():
                model.train()
                for x,y in batches:
                    loss_func(model(x), y).backward()
                    opt.step()
                    opt.zero_grad()
            class Batches(list):
                bs,n,device,dataset = dls.train.bs,len(batches),dls.train.device,range(len(batches))
            def ours():
                for i,b in enumerate(batches): learn.one_batch(i, b)
            with quiet(learn):
                learn.create_opt()
                learn('before_fit')
                learn('before_epoch')
                learn.dl,learn.epoch,learn.n_epoch,learn.n_iter = dls.train,0,1,len(batches)
                learn('before_train')
                for f in (bare, ours): f()
                pairs = [(timed(ours)[0], timed(bare)[0]) for _ in range(5)]
            yield dict(data=name, seed=seed, ours=float(np.median([a for a,_ in pairs]))/n, bare=float(np.median([b for _,b in pairs]))/n)

def bench_scratch(seeds=(1,2,3), names=('amazon', 'digits')):
    "The same network and budget, fine-tuned and from scratch"
    for name in names:
        for seed in seeds:
            dls,row = data(name, seed),dict(data=name, seed=seed)
            for pretrained in (True, False):
                learn = sft_learner(dls, pretrained=pretrained, freeze=None, seed=seed)
                with quiet(learn): row[f'pretrained_{pretrained}'],_ = timed(learn.fit_one_cycle, 2, 1e-3 if pretrained else 2e-3)
                row[f'pretrained_{pretrained}_accuracy'] = learn.history[-1]['accuracy']
            yield row

def interval(values):
    "Mean and half of its 95 % t interval"
    from scipy.stats import t
    v = np.asarray(values, float)
    return v.mean(), (t.ppf(.975, len(v)-1)*v.std(ddof=1)/math.sqrt(len(v)) if len(v)>1 else float('nan'))

def said(values, form='{:.2f}'):
    m,h = interval(values)
    return form.format(m) + ('' if math.isnan(h) else ' ± '+form.replace('+', '').format(h)) + f' (n={len(values)})'

def measure(name, seeds=None, names=None, alone=False, untimed=False):
    "Run a benchmark; its rows join those that are there, one for each data set and seed"
    fn,f = globals()[f'bench_{name}'],results/f'{name}.json'
    given = {k:v for k,v in dict(seeds=seeds, names=names).items() if v}
    rows = json.loads(f.read_text())['rows'] if f.exists() and given else []
    for row in fn(**given, **(dict(alone=True) if alone else {})):
        old = [r for r in rows if (r['data'],r['seed'])==(row['data'],row['seed'])]
        rows = [r for r in rows if r not in old]
        if alone or untimed: row = {k:v for r in (*old, row) for k,v in r.items()}
        if untimed: row = {k:v for k,v in row.items() if k in ('data','seed') or k.endswith(('_accuracy','_lr'))}
        rows.append(row)
        print(json.dumps(row), flush=True)
        out = dict(name=name, what=fn.__doc__, rows=rows, threads=torch.get_num_threads(), machine=f'{platform.machine()}, {os.cpu_count()} cores', torch=torch.__version__)
        results.mkdir(exist_ok=True)
        write_atomic(f, json.dumps(out, indent=1)+'\n')

RATIOS = dict(head=[('fastai_bn_True', 'cold', 'fastai, 5 epochs, train_bn=True / fit_head(), cold cache', 'fastai_bn_True_accuracy', 'ours_accuracy'),
                    ('fastai_bn_False', 'cold', 'fastai, 5 epochs, train_bn=False / fit_head(), cold cache', 'fastai_bn_False_accuracy', 'ours_accuracy'),
                    ('cold', 'forward', 'fit_head(), cold cache / one bare forward pass', None, 'ours_accuracy'),
                    ('warm', 'forward', 'fit_head(), warm cache / one bare forward pass', None, None)],
              whole=[('trainer', 'ours', 'Hugging Face Trainer, 3 epochs / our defaults', 'trainer_accuracy', 'ours_accuracy')],
              fine_tune=[('fastai', 'ours', 'fastai fine_tune(3) / our defaults', 'fastai_accuracy', 'ours_accuracy')],
              peak=[('trainer_mb', 'ours_mb', 'peak memory of Hugging Face Trainer / our defaults', None, None),
                    ('fastai_mb', 'ours_mb', 'peak memory of fastai fine_tune(3) / our defaults', None, None)],
              gradual=[('live', 'cached', 'gradual unfreezing without / with the cache', 'live_accuracy', 'cached_accuracy')],
              step=[('ours', 'bare', 'one training step / a bare PyTorch loop', None, None)],
              scratch=[('pretrained_False', 'pretrained_True', 'time from scratch / fine-tuned, 2 epochs each', 'pretrained_False_accuracy', 'pretrained_True_accuracy')])

def table():
    lines = ['| measured | data | ratio | peer accuracy | our accuracy | difference |', '|---|---|---|---|---|---|']
    for name,specs in RATIOS.items():
        f = results/f'{name}.json'
        if not f.exists(): continue
        rows = json.loads(f.read_text())['rows']
        for a,b,what,peer,ours in specs:
            for d in dict.fromkeys(r['data'] for r in rows):
                timed = [r[a]/r[b] for r in rows if r['data']==d and a in r and b in r]
                if not timed: continue
                scored = [r for r in rows if r['data']==d and all(k in r for k in (peer, ours) if k)]
                acc = lambda k: said([r[k] for r in scored], '{:.3f}') if k else ''
                diff = said([r[ours]-r[peer] for r in scored], '{:+.3f}') if peer and ours else ''
                lines.append(f"| {what} | {d} | {said(timed)} | {acc(peer)} | {acc(ours)} | {diff} |")
    readme = (here/'README.md').read_text()
    begin,end = '<!-- table -->','<!-- /table -->'
    head,rest = readme.split(begin)
    write_atomic(here/'README.md', head+begin+'\n'+'\n'.join(lines)+'\n'+end+rest.split(end)[1])
    print('\n'.join(lines))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', nargs='+', choices=[*RATIOS, 'tune', 'table'])
    p.add_argument('--seeds', type=int, nargs='*')
    p.add_argument('--data', nargs='*')
    p.add_argument('--alone', action='store_true', help='head and whole: ours without fastai or the Trainer, whose figures stay')
    p.add_argument('--untimed', action='store_true', help='keep accuracies alone')
    a = p.parse_args()
    for o in a.what: table() if o=='table' else measure(o, a.seeds, a.data, a.alone, a.untimed)
