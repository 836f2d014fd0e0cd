"The deletion test on real data: `python benchmarks/deletion.py [digits] [amazon]` writes results/deletion.json and deletion.md"
import json, sys, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd, torch
import torch.nn.functional as F
from sft_nb.all import *
from sft_nb.core.basics import eval_mode
from sft_nb.inspection.attributions import PICTURE_METHODS, TEXT_METHODS, _empty, _Explainer, _places, _real, _tensors, _with
from sft_nb.tasks.demo_data import make_demo

here = Path(__file__).parent
file = here/'results'/'deletion.json'

def _cells(values, side):
    "Sums `(side*side,)` over the cells of a map"
    return F.adaptive_avg_pool2d(values[None,None], side)[0,0].flatten()

def _visible(x, side, least=.02):
    "Numbers of the cells of a picture `(3, height, width)` that differ from its median color"
    d = (x-_empty(x[None])[0]).abs().mean(0)
    return (_cells(d, side)>least*d.max().clamp(min=1e-9)).nonzero()[:,0].cpu().numpy()

def _fill(x, cells, side):
    "The picture without some of its cells"
    gone = torch.zeros(side*side, device=x.device)
    gone[torch.as_tensor(np.asarray(cells, dtype=int), device=x.device)] = 1
    mask = F.interpolate(gone.reshape(1,1,side,side), x.shape[-2:], mode='nearest')[0]
    return torch.where(mask>0, _empty(x[None])[0], x)

def _candidates(ex, batch, at, i, values, side):
    "(what can be removed, its worth) of one item"
    if at[1]=='input_ids':
        real = _real(ex.tokenizer, _tensors(batch)[at][i].tolist(), batch[at[0]]['attention_mask'][i].tolist())
        return np.array(real, dtype=int),values[i].detach().cpu().numpy()[real]
    seen = _visible(_tensors(batch)[at][i], side)
    return seen,_cells(values[i].detach(), side).cpu().numpy()[seen]

def _without(batch, at, i, removed, side):
    "Copies of item `i`, each without some of its parts"
    one = {k:t[i:i+1].expand(len(removed), *t.shape[1:]).clone() for k,t in _tensors(batch).items()}
    for j,parts in enumerate(removed):
        if at[1]=='input_ids': one[at[0],'attention_mask'][j,parts] = 0
        else: one[at][j] = _fill(one[at][j], parts, side)
    return _with(batch, one)

def _deletions(ex, batch, at, i, values, p, cls, fractions, draws, rng, side):
    "Probability of the class of one item without its first and without random parts, a dict a fraction"
    parts,worth = _candidates(ex, batch, at, i, values, side)
    if len(parts)<2: return
    order = parts[np.argsort(-worth, kind='stable')]
    n = [min(len(parts)-1, max(1, round(f*len(parts)))) for f in fractions]
    removed = [order[:k] for k in n]+[rng.permutation(parts)[:k] for k in n for _ in range(draws)]
    after = ex.probabilities(ex.scores(_without(batch, at, i, removed, side)))[:,cls].cpu().numpy()
    for j,(f,k) in enumerate(zip(fractions, n)):
        yield dict(fraction=f, parts=len(parts), removed=k, before=p, top=after[j], random=after[len(n)+j*draws:len(n)+(j+1)*draws].mean())

def _deletion_rows(ex, batch, items, fractions, draws, rng, side):
    "A dict for each item, input and fraction of a batch"
    z = ex.scores(batch)
    cls,p = z.argmax(-1),ex.probabilities(z).amax(-1).tolist()
    for c,at in _places(batch, ex.spec.task).items():
        v = ex.values(batch, at, cls)
        for i,item in enumerate(items):
            yield from (dict(item=item, input=c, **o) for o in _deletions(ex, batch, at, i, v, p[i], cls[i].item(), fractions, draws, rng, side))

def deletion_test(
    learn, # An `SFTLearner`, or a `Predictor`
    rows, # Items to test on: a table with their inputs, or as `Predictor.predict` takes them
    fractions=(.1,.2,.3), # How much is removed; at least one part, and never all
    draws:int=10, # How often parts are drawn at random
    picture:str='ig', # As in `explain`
    text:str='ig', # As in `explain`
    steps:int=32, # As in `explain`
    side:int=16, # A picture is cut into `side` by `side` cells
    seed:int=0, # Of the draws
    batch_size:int=16, # Items a step
)->pd.DataFrame: # item, input, fraction, parts, removed, before, top, random: probabilities of the predicted class
    "Remove what matters most, and as much at random"
    ex,rng,out,at_row = _Explainer(learn, picture, text, steps),np.random.default_rng(seed),[],0
    rows = ex.rows(rows)
    with eval_mode(ex.model):
        for batch in ex.batches(rows, batch_size):
            n = len(next(iter(_tensors(batch).values())))
            out += _deletion_rows(ex, batch, rows.item.iloc[at_row:at_row+n], fractions, draws, rng, side)
            at_row += n
    return pd.DataFrame(out, columns=['item','input','fraction','parts','removed','before','top','random'])

def model(name, items):
    "A model of the demo's data, its head trained on cached features, then all of it for an epoch"
    task = get_task('image' if name=='digits' else 'text')
    demo = make_demo(task, cache_home()/'demo')
    dls = load_data(task.name, demo['source'], seed=42, max_items=items, **demo['load'])
    learn = sft_learner(dls, seed=42)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, **{k:v for k,v in demo['fine_tune'].items() if k!='epochs'})
    return learn

def interval(gain, draws=2000, seed=0):
    "95 % bootstrap interval over the items"
    rng = np.random.default_rng(seed)
    return np.percentile([rng.choice(gain, len(gain)).mean() for _ in range(draws)], [2.5,97.5]).tolist()

def main(names, items=2500, tested=100):
    out = json.loads(file.read_text()) if file.exists() else {}
    for name in names:
        start,learn = time.time(),model(name, items)
        ev = evaluate(learn, on='valid')
        rows = learn.dls.sft.split('valid').sample(tested, random_state=0)
        key,methods = ('picture',PICTURE_METHODS) if name=='digits' else ('text',TEXT_METHODS)
        got = dict(accuracy=ev.metrics['accuracy'], items=len(rows), methods={})
        for how in methods:
            t = deletion_test(learn, rows, fractions=(.1,.2,.3), draws=10, **{key:how})
            parts = []
            for f,o in t.groupby('fraction'):
                gain = (o.random-o.top).to_numpy()
                low,high = interval(gain)
                parts.append(dict(fraction=f, removed=float(o.removed.mean()), before=float(o.before.mean()), top=float(o.top.mean()), random=float(o.random.mean()), difference=float(gain.mean()),
                                  low=low, high=high))
            got['methods'][how] = parts
        got['seconds'] = time.time()-start
        out[name] = got
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(out, indent=1)+'\n')
        print(name, json.dumps(got, indent=1))
    report(out)

def report(out):
    lines = []
    for name,o in out.items():
        for how,parts in o['methods'].items():
            lines += [f"| {name} | {how} | {p['fraction']:.0%} | {p['before']:.3f} | {p['top']:.3f} | {p['random']:.3f} | {p['difference']:+.3f} ({p['low']:+.3f} to {p['high']:+.3f}) |" for p in parts]
    which = ', '.join(f"{k}: {o['items']} held-out items, accuracy {o['accuracy']:.3f}" for k,o in out.items())
    (here/'deletion.md').write_text(f'''# The deletion test

`python benchmarks/deletion.py`: of each item the parts that speak most for the predicted class are removed, and as many at random (10 draws). A difference above 0 means
that the attribution finds what the prediction rests on; in brackets its 95 % interval over the items (bootstrap). {which}. A removed token is hidden; a removed cell of
a picture gets the picture's median color, and only cells that differ from it are counted.

| data | attribution | removed | probability before | without the most attributed | without random ones | difference |
|---|---|---|---|---|---|---|
''' + '\n'.join(lines)+'\n')

if __name__=='__main__': main(sys.argv[1:] or ['digits','amazon'])
