"The deletion test on real data: `python benchmarks/deletion.py [digits] [amazon]` writes results/deletion.json and deletion.md"
import json, sys, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd
from sft_nb.all import *
from sft_nb.inspection.attributions import PICTURE_METHODS, TEXT_METHODS

here = Path(__file__).parent
file = here/'results'/'deletion.json'

def model(name, items):
    "A model of the demo's data, its head trained on cached features, then all of it for an epoch"
    task = get_task('image' if name=='digits' else 'text')
    demo = task.demo(cache_home()/'demo')
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
a picture gets the picture's median colour, and only cells that differ from it are counted.

| data | attribution | removed | probability before | without the most attributed | without random ones | difference |
|---|---|---|---|---|---|---|
''' + '\n'.join(lines)+'\n')

if __name__=='__main__': main(sys.argv[1:] or ['digits','amazon'])
