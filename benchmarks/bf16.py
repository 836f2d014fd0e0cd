"""What bfloat16 saves, and what it costs in accuracy: `Autocast(frozen=True)` and `Autocast()` against float32.

    python benchmarks/bf16.py                     # seeds 1 to 3, then rewrites the table in bf16.md
    python benchmarks/bf16.py table               # only the table

The ways run in turn in one process, from an empty cache, on rows out of packages (`sets.py`). Time is that of the processor, one thread.
"""
import argparse, json, os, time
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import numpy as np, torch
from sft_nb.all import *
from sft_nb.core.basics import write_atomic
import sets
from defaults import cold_cache, interval, load

here = Path(__file__).parent
FILE = here/'results'/'bf16.json'
ROWS = dict(digits=600, amazon=600, bbc=400)
WAYS = dict(float32=None, frozen=dict(frozen=True), all={})

def head(rows, seed, way):
    "Seconds and accuracy of the solved head: nearly all of it is the frozen pass"
    with cold_cache():
        learn,begun = sft_learner(load(rows), seed=seed),time.process_time()
        with learn.no_bar(), learn.no_logging(): learn.fit_head(**({} if way is None else dict(cbs=Autocast(**way))))
        return time.process_time()-begun,evaluate(learn).metrics['accuracy']

def whole(rows, seed, way):
    "Seconds and accuracy of `fine_tune()`"
    with cold_cache():
        learn,begun = sft_learner(load(rows), seed=seed),time.process_time()
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(**({} if way is None else dict(cbs=Autocast(**way))))
        return time.process_time()-begun,evaluate(learn).metrics['accuracy']

def run(names, seeds):
    if not has_bfloat16(): raise SystemExit('This processor does not compute in bfloat16.')
    kept = json.loads(FILE.read_text())['rows'] if FILE.exists() else []
    torch.set_num_threads(1)
    head(sets.table(names[0], 60, 0, valid=20), 0, None)
    for seed in seeds:
        for name in names:
            rows = sets.table(name, ROWS[name], seed, valid=400)
            row = dict(data=name, seed=seed, **{f'{what} {k}':f(rows, seed, w) for what,f in (('head', head), ('whole', whole)) for k,w in WAYS.items() if (what,k)!=('head','all')})
            kept = [r for r in kept if (r['data'],r['seed'])!=(name,seed)]+[row]
            write_atomic(FILE, json.dumps(dict(rows=kept, torch=torch.__version__), indent=1)+'\n')
            print(json.dumps(row), flush=True)

def text(values, form):
    m,h = interval(values)
    return f'{m:{form}} ± {h:{form.lstrip("+")}}'

def table():
    rows = json.loads(FILE.read_text())['rows']
    lines = ['| data | trained | in bfloat16 | seconds in float32 | time of float32 / its time | accuracy in float32 | difference, points |', '|'+'---|'*7]
    for name in ROWS:
        part = [r for r in rows if r['data']==name]
        for what in ('head', 'whole'):
            for way in ('frozen', 'all'):
                if not part or f'{what} {way}' not in part[0]: continue
                a,b = (np.array([r[f'{what} {k}'] for r in part]) for k in ('float32', way))
                lines.append(f"| {name} | {what} | {way} | {a[:,0].mean():.1f} | {text(a[:,0]/b[:,0], '.2f')} | {a[:,1].mean():.3f} | {text(100*(b[:,1]-a[:,1]), '+.1f')} |")
    md = here/'bf16.md'
    first,rest = md.read_text().split('<!-- table -->')
    write_atomic(md, first+'<!-- table -->\n'+'\n'.join(lines)+'\n<!-- /table -->'+rest.split('<!-- /table -->')[1])
    print('\n'.join(lines))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', nargs='?', choices=['table'], help='only rewrite the table')
    p.add_argument('--sets', nargs='*', choices=list(ROWS), default=list(ROWS))
    p.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    a = p.parse_args()
    if a.what!='table': run(a.sets, a.seeds)
    table()
