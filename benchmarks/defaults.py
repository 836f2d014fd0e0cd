"""`learn.fine_tune()` as it comes against what others do by default, on eight data sets that no recipe was chosen on.

    python benchmarks/defaults.py                          # all sets, seeds 1 to 3; about an hour and a half on one core
    python benchmarks/defaults.py --sets bbc --seeds 1     # some; rows join those that are there
    python benchmarks/defaults.py table                    # rewrite benchmarks/defaults.md

The peers are built from plain timm, transformers, fastai and scikit-learn by their own recipes; nothing of ours is in them but the rows. Each runs in turn in this
process, on as many threads, from the same files; pictures have the same side for all, fastai on texts runs for seed 1 alone. Their time counts reading, training and the accuracy after
each epoch, in seconds of the processor, which other processes disturb little.
"""
import argparse, contextlib, json, math, os, random, re, tempfile, time, warnings
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import numpy as np, pandas as pd, torch
from sft_nb.all import *
from sft_nb.checkpoints.assets import fetch
from sft_nb.checkpoints.references import open_checkpoint
from sft_nb.core.basics import write_atomic
from sft_nb.training import cache, cache_store
import sets

here = Path(__file__).parent
FILE = here/'results'/'defaults.json'
ROWS = dict(fashion=300, letters=312, clipart=400, solar=400, bbc=400, foldoc=420, wordnet=600, licences=300)

def seeded_all(seed):
    random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)

@contextlib.contextmanager
def cold_cache():
    with tempfile.TemporaryDirectory() as d:
        was = cache.cache_folder
        cache.cache_folder = cache_store.cache_folder = lambda: Path(d)
        try: yield
        finally: cache.cache_folder = cache_store.cache_folder = was

def load(rows):
    return load_data('image' if 'image' in rows else 'text', rows, seed=0, **({} if 'image' in rows else dict(max_length=128)))

def ours(rows, seed):
    with cold_cache():
        learn = sft_learner(load(rows), seed=seed)
        with learn.no_bar(), learn.no_logging(): learn.fine_tune()
        return dict(accuracy=learn.history[-1]['accuracy'], head=learn.history[0]['accuracy'], plan={k:str(v) for k,v in learn.state.plan.values.items()})

def halves(rows): return rows[rows.split=='train'],rows[rows.split=='valid']

def timm_net(n):
    "EfficientNet-Lite0 as timm makes it, with the weights of the checkpoint, whose layers have other names; the classifier is timm's own"
    return open_checkpoint('pip:efficientnet-lite0', task='image').timm_model(num_classes=n)

def image_dls(rows, side, bs=64):
    from fastai.vision.all import ColReader, CropPad, ImageDataLoaders, Normalize, Resize
    p = open_checkpoint('pip:efficientnet-lite0', task='image').preprocess
    frame = rows.assign(is_valid=rows.split=='valid')
    return ImageDataLoaders.from_df(frame, path='/', fn_col='image', label_col='label', valid_col='is_valid', item_tfms=Resize(side), bs=bs, num_workers=0,
                                    batch_tfms=Normalize.from_stats(p['mean'], p['std'], cuda=False))

def fastai_pictures(rows, seed, side):
    "`vision_learner` and `fine_tune(3)` of fastai with their defaults"
    from fastai.vision.all import accuracy, vision_learner
    seeded_all(seed)
    learn = vision_learner(image_dls(rows, side), 'efficientnet_lite0', pretrained=False, normalize=False, metrics=accuracy)
    body = learn.model[0].model
    lost = body.load_state_dict(timm_net(2).state_dict(), strict=False)
    assert not lost.missing_keys and all(k.startswith('classifier') for k in lost.unexpected_keys), lost
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(3)
    return dict(accuracy=float(learn.recorder.values[-1][-1]))

def hf_parts(rows):
    "Tokens and labels of both sides, the tokenizer, and the folder of the checkpoint"
    from transformers import AutoTokenizer
    folder = fetch('all-minilm-l6-v2')
    tok,classes = AutoTokenizer.from_pretrained(folder),sorted(rows.label.unique())
    def part(r):
        enc = tok(list(r.text), truncation=True, max_length=128)
        return [dict(input_ids=i, attention_mask=m, labels=classes.index(y)) for i,m,y in zip(enc['input_ids'], enc['attention_mask'], r.label)]
    return [part(o) for o in halves(rows)],tok,folder,len(classes)

def trainer(rows, seed):
    "Trainer of transformers, 3 epochs, its defaults: AdamW 5e-5, batch 8, linear"
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, set_seed, Trainer, TrainingArguments
    set_seed(seed)
    (train,valid),tok,folder,n = hf_parts(rows)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=n)
    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(out, num_train_epochs=3, eval_strategy='epoch', save_strategy='no', logging_strategy='no', report_to=[], disable_tqdm=True, seed=seed, use_cpu=True)
        t = Trainer(model=model, args=args, train_dataset=train, eval_dataset=valid, data_collator=DataCollatorWithPadding(tok),
                    compute_metrics=lambda p: dict(accuracy=float((p.predictions.argmax(-1)==p.label_ids).mean())))
        t.train()
        return dict(accuracy=t.state.log_history[-2]['eval_accuracy'])

def fastai_texts(rows, seed):
    "`fine_tune(3)` of fastai with its defaults over transformers' classifier"
    from fastai.data.all import DataLoader as Loader, DataLoaders
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    from torch import nn
    from transformers import AutoModelForSequenceClassification
    seeded_all(seed)
    (train,valid),tok,folder,n = hf_parts(rows)
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.m = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=n)
        def forward(self, x): return self.m(input_ids=x['input_ids'], attention_mask=x['attention_mask']).logits
    def batch(o):
        x = tok.pad([dict(input_ids=r['input_ids'], attention_mask=r['attention_mask']) for r in o], return_tensors='pt')
        return dict(x),torch.tensor([r['labels'] for r in o])
    dls = DataLoaders(*(Loader(p, bs=64, shuffle=i==0, create_batch=batch, num_workers=0) for i,p in enumerate((train, valid))), device='cpu')
    learn = Learner(dls, Net(), loss_func=nn.CrossEntropyLoss(), metrics=accuracy, splitter=lambda m: [list(m.m.bert.parameters()), list(m.m.classifier.parameters())])
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(3)
    return dict(accuracy=float(learn.recorder.values[-1][-1]))

def features(rows, side=None):
    "Frozen features of plain networks"
    if 'image' in rows:
        dls,out = image_dls(rows, side),[]
        net = timm_net(2).eval()
        net.reset_classifier(0)
        with torch.inference_mode():
            for dl in (dls.train.new(shuffle=False, drop_last=False), dls.valid):
                got = [(net(x),y) for x,y in dl]
                out.append((torch.cat([torch.as_tensor(a) for a,_ in got]).numpy(), torch.cat([torch.as_tensor(b) for _,b in got]).numpy()))
        return out
    from transformers import AutoModel
    parts,tok,folder,_ = hf_parts(rows)
    net,out = AutoModel.from_pretrained(folder).eval(),[]
    with torch.inference_mode():
        for part in parts:
            got = []
            for i in range(0, len(part), 32):
                x = tok.pad([dict(input_ids=r['input_ids'], attention_mask=r['attention_mask']) for r in part[i:i+32]], return_tensors='pt')
                m = x['attention_mask'][...,None]
                got.append((net(**x).last_hidden_state*m).sum(1)/m.sum(1))
            out.append((torch.cat(got).numpy(), np.array([r['labels'] for r in part])))
    return out

def logistic(rows, seed, side=None):
    "Logistic regression on frozen features, its strength by cross-validation"
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    (x,y),(vx,vy) = features(rows, side)
    fit = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=np.logspace(-5, 1, 7), cv=3, max_iter=200)).fit(x, y)
    return dict(accuracy=float((fit.predict(vx)==vy).mean()))

def timed(f, *args):
    begun = time.process_time()
    out = f(*args)
    return {**out, 'seconds':time.process_time()-begun}

def measure(name, seed):
    rows = sets.table(name, ROWS[name], seed, valid=400)
    row = dict(data=name, seed=seed, n_train=int((rows.split=='train').sum()), n_valid=int((rows.split=='valid').sum()))
    if 'image' in rows:
        side = load(rows).sft.preprocess['size']
        ways = dict(ours=(ours,), fastai=(fastai_pictures, side), logistic=(logistic, side))
        row['side'] = side
    else: ways = dict(ours=(ours,), trainer=(trainer,), **(dict(fastai=(fastai_texts,)) if seed==1 else {}), logistic=(logistic,))
    for way,(f,*more) in ways.items(): row[way] = timed(f, rows, seed, *more)
    return row

def warm():
    "Load every library before the clock starts"
    import fastai.vision.all, sklearn.linear_model, sklearn.pipeline, timm, transformers
    transformers.Trainer, transformers.AutoModelForSequenceClassification, transformers.AutoTokenizer

def run(names, seeds):
    warm()
    kept = json.loads(FILE.read_text())['rows'] if FILE.exists() else []
    for seed in seeds:
        for name in names:
            row = measure(name, seed)
            kept = [r for r in kept if (r['data'],r['seed'])!=(name,seed)]+[row]
            FILE.parent.mkdir(exist_ok=True)
            write_atomic(FILE, json.dumps(dict(rows=kept, threads=torch.get_num_threads(), torch=torch.__version__), indent=1)+'\n')
            print(name, seed, {k:(round(v['accuracy'], 3), round(v['seconds'], 1)) for k,v in row.items() if isinstance(v, dict)}, flush=True)

def interval(values):
    from scipy.stats import t
    v = np.asarray(values, float)
    return v.mean(), t.ppf(.975, len(v)-1)*v.std(ddof=1)/math.sqrt(len(v)) if len(v)>1 else float('nan')

def said(mean, half): return f'{mean:+.1f}'+('' if math.isnan(half) else f' ± {half:.1f}')

def table():
    rows = json.loads(FILE.read_text())['rows']
    frame = pd.DataFrame([dict(data=r['data'], seed=r['seed'], way=w, accuracy=r[w]['accuracy'], seconds=r[w]['seconds'], n=r['n_train']) for r in rows for w in r if isinstance(r[w], dict)])
    lines = []
    for kind,peers in (('pictures', ('fastai','logistic')), ('texts', ('trainer','fastai','logistic'))):
        names = [n for n in sets.PROOF[kind] if n in set(frame.data)]
        lines += [f'| {kind} | rows | ours | seconds | '+' | '.join(f'{p} | ours − {p} | times the time of ours' for p in peers)+' |', '|'+'---|'*(4+3*len(peers))]
        pooled = {p:[] for p in peers}
        for name in names:
            part = frame[frame.data==name]
            own = part[part.way=='ours'].set_index('seed')
            cells = [name, f'{own.n.iloc[0]:,}', f'{own.accuracy.mean():.3f}', f'{own.seconds.mean():.0f}']
            for p in peers:
                other = part[part.way==p].set_index('seed')
                d = (100*(own.accuracy-other.accuracy)).dropna()
                pooled[p] += list(d)
                m,h = interval(d)
                cells += [f'{other.accuracy.mean():.3f}', said(m, h), f'{(other.seconds/own.seconds).mean():.2f}']
            lines.append('| '+' | '.join(cells)+' |')
        cells = ['all', '', '', '']
        for p in peers:
            m,h = interval(pooled[p])
            ratio = frame[(frame.way==p) & frame.data.isin(names)].set_index(['data','seed']).seconds/frame[(frame.way=='ours') & frame.data.isin(names)].set_index(['data','seed']).seconds
            cells += ['', said(m, h), f'{ratio.mean():.2f}']
        lines += ['| '+' | '.join(cells)+' |', '']
    text = (here/'defaults.md').read_text()
    head,rest = text.split('<!-- table -->')
    write_atomic(here/'defaults.md', head+'<!-- table -->\n'+'\n'.join(lines)+'<!-- /table -->'+rest.split('<!-- /table -->')[1])
    for f in ('nbs/index.ipynb', 'README.zh.md', 'benchmarks/defaults.md'): renew(here.parent/f, short(frame, chinese='zh' in f))
    print('\n'.join(lines))
    print('README.md is made of nbs/index.ipynb: make readme')

# Name, name in Chinese, peer, sets
SHORT = [('Pictures, mean of four sets', '图片，四个数据集的平均', 'fastai', sets.PROOF['pictures']), ('of these Fashion-MNIST', '其中 Fashion-MNIST', 'fastai', ['fashion']),
         ('of these clip art', '其中剪贴画', 'fastai', ['clipart']), ('Texts, mean of four sets', '文本，四个数据集的平均', 'trainer', sets.PROOF['texts']),
         ('of these BBC news', '其中 BBC 新闻', 'trainer', ['bbc']), ('of these glosses of WordNet', '其中 WordNet 释义', 'trainer', ['wordnet'])]

def short(frame, chinese=False):
    "The table of the README: ours, the usual fine-tuning and a logistic regression, as six rows"
    for en,zh,peer,names in SHORT:
        some = {w:frame[(frame.way==w) & frame.data.isin(names)].set_index(['data','seed']) for w in ('ours', peer, 'logistic')}
        scores = ' | '.join(f'{o.accuracy.mean():.3f}' for o in some.values())
        yield f"| {zh if chinese else en} | {scores} | {(some[peer].seconds/some['ours'].seconds).mean():.1f} |"

def renew(path, lines):
    "Put rows into the table of `path` that begin alike"
    text = path.read_text(encoding='utf8')
    for line in lines:
        same = '|'.join(line.split('|')[:2])+'|'
        text = re.sub(re.escape(same)+r'[^\n"\\]*\|', lambda _: line, text)
    write_atomic(path, text)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', nargs='?', choices=['table'], help='only rewrite the table')
    p.add_argument('--sets', nargs='*', choices=list(ROWS), default=list(ROWS))
    p.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    a = p.parse_args()
    warnings.filterwarnings('ignore', category=FutureWarning)
    if a.what!='table': run(a.sets, a.seeds)
    table()
