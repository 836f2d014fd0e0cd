"""Instruction tuning with the frozen part from the cache against TRL, plain transformers and a bare loop, on questions for command-line options.

    python benchmarks/chat.py                        # everything, seeds 1 to 3; rows join those that are there
    python benchmarks/chat.py fit --seeds 1          # some: fit, step, memory, writing
    python benchmarks/chat.py table                  # rewrite benchmarks/chat.md

The peers are `trl.SFTTrainer` and `peft` over transformers' own classes with the same weights; nothing of ours is in them but the rows. Each runs in turn in this process, on one thread.
Time is that of the processor, so that what else the machine does counts little; it begins with the rows and counts reading the checkpoint, tokens, the cache, training, and the loss of the
held-out rows after each epoch. Perplexity is that of the plain network on the held-out answers, by one function for all.
"""
import argparse, contextlib, json, math, os, random, subprocess, sys, tempfile, time, warnings
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import numpy as np, pandas as pd, torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip
from sft_nb.all import *
from sft_nb.checkpoints.assets import fetch
from sft_nb.checkpoints.references import open_checkpoint
from sft_nb.core.basics import write_atomic
from sft_nb.evaluation.prediction import model_outputs, sorted_by_length
from sft_nb.training import cache

here = Path(__file__).parent
FILE = here/'results'/'chat.json'
MODEL,SYSTEM,BATCH,MARKS = 'pip:smollm2-135m-instruct','Answer with the option alone.',8,(3, 10)
RATE,LORA_RATE = 2e-4,1e-3

def completions():
    "(command, description, option) of the options of fish's completion files that need no subcommand"
    import shlex
    for path in sorted(fetch('fish-completions').glob('*.fish')):
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            if not line.startswith('complete '): continue
            try: words = shlex.split(line, comments=True)
            except ValueError: continue
            after = {a:b for a,b in zip(words, words[1:])}
            if not {'-n','--condition'}&set(words): yield tuple(next((after[k] for k in ks if k in after), None) for ks in (('-c','--command'), ('-d','--description'), ('-l','--long-option')))

def rows_for(seed, n, more=72):
    "(`n` rows to train on and half as many that are looked at after each epoch; `more` that perplexity is taken on), each of other commands; four of a command at most"
    t = pd.DataFrame(completions(), columns=['command','what','option']).dropna()
    t = t[t.what.str.fullmatch(r'[^$%\n]{6,80}') & t.option.str.fullmatch(r'[a-zA-Z][\w-]+') & ~t.option.isin(['help','version'])].drop_duplicates(['command','what'], keep=False)
    t = t.sample(frac=1, random_state=seed).groupby('command').head(4)
    t = t.set_index('command').loc[t.command.drop_duplicates()].reset_index()
    train = t.head(n)
    valid = t[~t.command.isin(train.command)].head(n//2)
    test = t[~t.command.isin([*train.command, *valid.command])].head(more)
    whole = pd.concat([train.assign(split='train'), valid.assign(split='valid'), test.assign(split='test')])
    rows = pd.DataFrame(dict(prompt=[f'Which option of {c}: {w}?' for c,w in zip(whole.command, whole.what)], completion='--'+whole.option, split=whole.split)).reset_index(drop=True)
    return rows[rows.split!='test'],rows[rows.split=='test']

def seeded_all(seed): random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)

@contextlib.contextmanager
def cold_cache():
    with tempfile.TemporaryDirectory() as d:
        was,cache.cache_folder = cache.cache_folder,lambda: Path(d)
        try: yield
        finally: cache.cache_folder = was

class Clock:
    "Seconds of the processor, and of the wall, since the beginning; what is done `away` does not count"
    def __init__(self): self.begun,self.off = self.now(),np.zeros(2)
    def now(self): return np.array([time.process_time(), time.perf_counter()])
    def read(self): return dict(zip(('seconds','wall'), (self.now()-self.begun-self.off).round(3).tolist()))
    @contextlib.contextmanager
    def away(self):
        begun = self.now()
        try: yield
        finally: self.off += self.now()-begun

# The same measure for all

def said(row): return [dict(role='system', content=SYSTEM), dict(role='user', content=row.prompt)]

@torch.no_grad()
def answer_losses_of(net, tok, rows):
    "(loss, tokens) of each held-out answer with its end token, by the network alone"
    out,was = [],net.training
    net.eval()
    for i in range(0, len(rows), BATCH):
        ids,labels = [],[]
        for r in rows.iloc[i:i+BATCH].itertuples():
            p = tok.apply_chat_template(said(r), add_generation_prompt=True, return_dict=False)
            a = tok(r.completion+'<|im_end|>', add_special_tokens=False)['input_ids']
            ids.append(torch.tensor(p+a)); labels.append(torch.tensor([-100]*len(p)+a))
        x = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        y = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(o) for o in ids], batch_first=True)
        loss = F.cross_entropy(net(input_ids=x, attention_mask=mask, use_cache=False).logits[:,:-1].transpose(1, 2), y[:,1:], reduction='none')
        out += list(zip(loss.sum(1).tolist(), (y!=-100).sum(1).tolist()))
    net.train(was)
    return out

def mark(clock, net, tok, rows):
    with clock.away():
        found = answer_losses_of(net, tok, rows)
        return dict(perplexity=math.exp(sum(a for a,_ in found)/sum(n for _,n in found)))

# Ours

def load(rows): return load_data('chat', rows, seed=0, checkpoint=MODEL, system=SYSTEM, batch_size=BATCH)

class Mark(Callback):
    order = 90
    def __init__(self, f): self.f = f
    def after_epoch(self): self.f(self.epoch+1)

def ours(rows, seed, tok, test):
    "The upper quarter, from the cache, which is empty at first"
    clock,out = Clock(),{}
    learn = sft_learner(load(rows), seed=seed, metrics=[])
    def note(epoch):
        if epoch in MARKS: out[str(epoch)] = {**clock.read(), **mark(clock, learn.model.net, tok, test)}
    with cold_cache(), frozen_cache(learn), learn.no_bar(), learn.no_logging(): learn.fit(max(MARKS), RATE, wd=0., cbs=[Mark(note), GradientClip(1.)])
    return out,learn,[n for n,p in learn.model.net.named_parameters() if p.requires_grad]

# TRL

def folder(): return open_checkpoint(MODEL).folder
def plain_net():
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)

def trainer(rows, seed, out, net, rate, epochs, config=None, **kw):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    seeded_all(seed)
    args = SFTConfig(out, num_train_epochs=epochs, per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH, learning_rate=rate, lr_scheduler_type='constant', weight_decay=0.,
                     save_strategy='no', logging_strategy='no', report_to=[], use_cpu=True, bf16=False, activation_checkpointing=False, disable_tqdm=True, seed=seed, **kw)
    sides = {s:Dataset.from_list([dict(prompt=said(r), completion=[dict(role='assistant', content=r.completion)]) for r in rows[rows.split==s].itertuples()]) for s in ('train','valid')}
    return SFTTrainer(net, args, train_dataset=sides['train'], eval_dataset=sides['valid'], processing_class=AutoTokenizer.from_pretrained(folder()), peft_config=config)

def by_trl(rows, seed, tok, test, names=None):
    "The layers of `names`, the others frozen; None: LoRA, r=8, on all linear layers"
    from peft import LoraConfig
    from transformers import TrainerCallback
    clock,out,net = Clock(),{},plain_net()
    if names:
        for n,p in net.named_parameters(): p.requires_grad_(n in names)
    config = None if names else LoraConfig(r=8, lora_alpha=16, target_modules='all-linear', task_type='CAUSAL_LM')
    marks = MARKS if names else MARKS[:1]
    class Note(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **kw):
            if (e := round(state.epoch)) in marks: out[str(e)] = {**clock.read(), **mark(clock, model, tok, test)}
    with tempfile.TemporaryDirectory() as d:
        t = trainer(rows, seed, d, net, RATE if names else LORA_RATE, max(marks), config, eval_strategy='epoch')
        t.add_callback(Note())
        t.train()
    return out

# What is measured

def fit(seed, n):
    "Upper quarter from the cache, the same layers by TRL, LoRA by TRL; then answers of the tuned model in batches and one by one"
    from transformers import AutoTokenizer
    (rows,test),tok = rows_for(seed, n),AutoTokenizer.from_pretrained(folder())
    row = dict(n_train=n, n_valid=int((rows.split=='valid').sum()), n_test=len(test), before=mark(Clock(), plain_net(), tok, test)['perplexity'])
    row['ours'],learn,names = ours(rows, seed, tok, test)
    row['writing'] = writing(learn, test.head(24))
    del learn
    row['untuned'] = writing(sft_learner(load(rows)), test.head(24))
    row['trl'] = by_trl(rows, seed, tok, test, names)
    row['lora'] = by_trl(rows, seed, tok, test)
    return row

def answers(learn, rows, size):
    spec = learn.spec
    some = sorted_by_length(spec, rows)[0] if size>1 else rows
    return {p:o for p,o in zip(some.prompt, pd.concat([spec.task.decode(spec, o) for o in model_outputs(learn.model, spec, some, size, '', remarks=False)]).prediction)}

def writing(learn, rows):
    "Answers to some rows, as an evaluation writes them, and row by row"
    out = {}
    for name,size in (('batched', 64), ('single', 1)):
        clock = Clock()
        said = answers(learn, rows, size)
        out[name] = clock.read()
        out['equal'] = said==out.setdefault('said', said)
    out.pop('said')
    return out

def step(seed, n, steps=1, times=3):
    "One training step of the whole network against bare loops, in turn on the same batches"
    dls = load(rows_for(seed, n)[0])
    learn = sft_learner(dls, freeze=None, seed=seed, metrics=[])
    batches,model,net = [b for b,_ in zip(dls.train, range(steps))],learn.model,learn.model.net
    opt = torch.optim.AdamW(model.parameters(), lr=1e-6)
    def bare(loss_of):
        model.train()
        for x,y in batches:
            loss_of(x, y).backward()
            opt.step()
            opt.zero_grad()
    def at_places(x, y): return learn.loss_func(model(x), y)
    def everywhere(x, y):
        labels = torch.full_like(x['input_ids'], -100)
        for row,places,ys in zip(labels, x['places'], y): row[places[ys!=-100]+1] = ys[ys!=-100]
        return net(input_ids=x['input_ids'], attention_mask=x['attention_mask'], labels=labels, use_cache=False).loss
    def own():
        for i,b in enumerate(batches): learn.one_batch(i, b)
    with learn.no_bar(), learn.no_logging():
        learn.create_opt()
        for p in learn.opt.param_groups: p['lr'] = 1e-6
        learn('before_fit'); learn('before_epoch')
        learn.dl,learn.epoch,learn.n_epoch,learn.n_iter = dls.train,0,1,len(batches)
        learn('before_train')
        ways = dict(ours=own, bare=lambda: bare(at_places), plain=lambda: bare(everywhere))
        own(); bare(at_places)
        found = {k:[] for k in ways}
        for _ in range(times):
            for k,f in ways.items():
                clock = Clock()
                f()
                found[k].append(clock.read()['seconds']/steps)
    return {k:float(np.median(v)) for k,v in found.items()}

def highest():
    "Most resident memory of this process so far, in MB"
    return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])/1e3

def peak(way, n):
    "Peak memory of one epoch of the whole network, in this process"
    torch.set_num_threads(1)
    begun,(rows,_) = highest(),rows_for(1, n)
    rows = pd.concat([rows[rows.split=='train'].head(3*BATCH), rows[rows.split=='valid'].head(2)])
    if way=='ours':
        learn = sft_learner(load(rows), freeze=None, metrics=[])
        with learn.no_bar(), learn.no_logging(): learn.fit(1, RATE, wd=0.)
    else:
        with tempfile.TemporaryDirectory() as d: trainer(rows, 1, d, plain_net(), RATE, 1, eval_strategy='epoch').train()
    print(json.dumps(dict(peak=highest(), imports=begun)))

def memory(seed, n):
    "Peak memory, a fresh process for each"
    def one(way):
        r = subprocess.run([sys.executable, __file__, 'peak', way, '--rows', str(n)], capture_output=True, text=True)
        if r.returncode: raise SystemExit(r.stderr[-2000:])
        return json.loads(r.stdout.splitlines()[-1])
    return {w:one(w) for w in ('ours','trl')}

# Results

PARTS = dict(fit=fit, step=step, memory=memory)

def run(parts, seeds, n):
    kept = json.loads(FILE.read_text())['rows'] if FILE.exists() else []
    torch.set_num_threads(1)
    for seed in seeds:
        for part in parts:
            if part=='memory' and seed!=seeds[0]: continue
            row = dict(part=part, seed=seed, n=n, **PARTS[part](seed, n))
            kept = [r for r in kept if (r['part'],r['seed'])!=(part,seed)]+[row]
            FILE.parent.mkdir(exist_ok=True)
            write_atomic(FILE, json.dumps(dict(rows=kept, torch=torch.__version__), indent=1)+'\n')
            print(json.dumps(row), flush=True)

def interval(values):
    from scipy.stats import t
    v = np.asarray(values, float)
    half = f' ± {t.ppf(.975, len(v)-1)*v.std(ddof=1)/math.sqrt(len(v)):.2f}' if len(v)>1 else ''
    return f'{v.mean():.2f}{half} (n={len(v)})'

def table():
    rows = json.loads(FILE.read_text())['rows']
    fits,steps,mem = ([r for r in rows if r['part']==p] for p in PARTS)
    def over(f, rs=fits): return interval([f(r) for r in rs])
    def seconds(way, e): return lambda r: r[way][e]['seconds']
    def ppl(way, e): return lambda r: r[way][e]['perplexity']
    lines = ['| measured | ours | peer | seconds of the peer / ours | perplexity ours / peer |', '|'+'---|'*5]
    for way,e,name in (('trl','3','TRL, the same layers, 3 epochs'), ('trl','10','TRL, the same layers, 10 epochs'), ('lora','3','TRL, LoRA r=8 over all layers, 3 epochs')):
        lines.append(f"| {name} | {over(seconds('ours', e))} s, perplexity {over(ppl('ours', e))} | {over(seconds(way, e))} s, perplexity {over(ppl(way, e))} "
                     f"| {over(lambda r: r[way][e]['seconds']/r['ours'][e]['seconds'])} | {over(lambda r: r['ours'][e]['perplexity']/r[way][e]['perplexity'])} |")
    for k,name in (('untuned','24 answers of the untuned model (long), row by row'), ('writing','24 answers of the tuned model (a few tokens), row by row')):
        if fits: lines.append(f"| {name} | {over(lambda r: r[k]['batched']['seconds'])} s | {over(lambda r: r[k]['single']['seconds'])} s "
                              f"| {over(lambda r: r[k]['single']['seconds']/r[k]['batched']['seconds'])} | |")
    for k,name in (('bare','a bare loop over the same forward pass, one step'), ('plain','a bare loop with all scores, one step')):
        if steps: lines.append(f"| {name} | {over(lambda r: r['ours'], steps)} s | {over(lambda r: r[k], steps)} s | {over(lambda r: r[k]/r['ours'], steps)} | |")
    if mem: lines.append(f"| TRL, peak memory, whole network | {mem[0]['ours']['peak']:,.0f} MB | {mem[0]['trl']['peak']:,.0f} MB | {mem[0]['trl']['peak']/mem[0]['ours']['peak']:.2f} (memory) | |")
    if fits: lines += ['', f"{fits[0]['n_train']} rows to train on, {fits[0]['n_valid']} looked at after each epoch, {fits[0]['n_test']} for the perplexity, which is {over(lambda r: r['before'])} before training."]
    head,rest = (here/'chat.md').read_text().split('<!-- table -->')
    write_atomic(here/'chat.md', head+'<!-- table -->\n'+'\n'.join(lines)+'\n<!-- /table -->'+rest.split('<!-- /table -->')[1])
    print('\n'.join(lines))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', nargs='*', help=f"some of {', '.join(PARTS)}; table: only rewrite the table")
    p.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    p.add_argument('--rows', type=int, default=120, help='rows to train on')
    a = p.parse_args()
    warnings.filterwarnings('ignore', category=FutureWarning)
    if a.what[:1]==['peak']: peak(a.what[1], a.rows)
    else:
        if a.what!=['table']: run([w for w in a.what if w in PARTS] or list(PARTS), a.seeds, a.rows)
        table()
