"""Faults planted into real data, and how many of them `audit` finds.

    python benchmarks/audit.py                     # digits, amazon and tweets; writes results/audit.json and audit.md
    python benchmarks/audit.py --data amazon --seeds 1 2 3
"""
import argparse, json, os, shutil, tempfile, time
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import numpy as np, pandas as pd
from sft_nb.all import *
from sft_nb.core.basics import write_atomic
from sft_nb.tasks.demo_data import make_demo

here = Path(__file__).parent
DATA = ('digits', 'amazon', 'tweets')

def rows_of(name, seed, n=None):
    "item, input, label and a split of one fifth"
    task = get_task('image' if name=='digits' else 'text')
    demo = make_demo(task, Path(tempfile.gettempdir())/'sft_nb-bench')
    source = Path(demo['source']).with_name(f'{name}.csv') if name!='digits' else demo['source']
    rows = read_rows(source, task)[[task.input_columns[0], 'label']].drop_duplicates(task.input_columns[0])
    rng = np.random.default_rng(seed)
    if n: rows = rows.sample(min(n, len(rows)), random_state=seed)
    return task,rows.assign(split=np.where(rng.random(len(rows))<.2, 'valid', 'train')).reset_index(drop=True)

def loaded(task, rows):
    return load_data(task, rows, bad='skip', augment=False, **(dict(size=64, resize='squish') if task.name=='image' else {}))

def plant_copies(task, rows, seed, folder, n=50):
    "Copies of `n` training items on the validation side; returns the rows and the contents that were copied"
    picked,kind = rows[rows.split=='train'].sample(n, random_state=seed),task.input_columns[0]
    copies = picked.assign(split='valid')
    if kind=='image': copies[kind] = [str(shutil.copy(o, folder/f'copy-{i:03}.png')) for i,o in enumerate(picked[kind])]
    return pd.concat([rows, copies], ignore_index=True),list(zip(range(len(rows), len(rows)+n), picked.index))

def plant_flips(rows, seed, share=.05):
    "Another label for a share of the rows"
    rng,names = np.random.default_rng(seed),sorted(rows.label.unique())
    at = rng.choice(len(rows), round(share*len(rows)), replace=False)
    labels = rows.label.to_numpy(dtype=object).copy()
    for i in at: labels[i] = rng.choice([o for o in names if o!=labels[i]])
    return rows.assign(label=labels),set(at.tolist())

def found_copies(task, rows, seed):
    with tempfile.TemporaryDirectory() as d:
        planted,pairs = plant_copies(task, rows, seed, Path(d))
        a = audit(loaded(task, planted))
        names = a.spec.rows[['item', task.input_columns[0]]]
        by = {c:i for i,c in zip(names['item'], names[task.input_columns[0]])} if task.name=='image' else None
        got = {frozenset(o) for o in zip(a.duplicates['item'], a.duplicates.other_item)}
        name = (lambda i: by[planted[task.input_columns[0]][i]]) if by else (lambda i: f'row {i}')
        def joined(i, j):
            one = a._leaked()
            return frozenset((name(i), name(j))) in got or name(j) in one
        return sum(joined(i, j) for i,j in pairs)/len(pairs)

def found_flips(task, rows, seed, top=.1):
    noisy,at = plant_flips(rows, seed)
    a = audit(loaded(task, noisy))
    key = task.input_columns[0]
    wrong = set(noisy[key].iloc[sorted(at)])
    worst = a.suspects(round(top*len(a.rows)))
    return len(wrong & set(worst[key]))/len(wrong)

def measure(name, seed, n=None):
    task,rows = rows_of(name, seed, n)
    start = time.perf_counter()
    clean = audit(loaded(task, rows))
    seconds = time.perf_counter()-start
    counts = clean.findings.severity.value_counts()
    out = dict(data=name, seed=seed, rows=len(rows), copies_found=found_copies(task, rows, seed),
               flips_in_top_tenth=found_flips(task, rows, seed), errors_on_clean=int(counts.get('error', 0)),
               warnings_on_clean=int(counts.get('warning', 0)), pairs_on_clean=len(clean.duplicates), seconds_audit=round(seconds, 1))
    print(out, flush=True)
    return out

def table(rows):
    t = pd.DataFrame(rows)
    lines = ['| data | rows | seeds | copies across the split that are found (of 50) | changed labels (5 %) in the most suspect tenth | errors on the data after exact repeats are dropped |', '|---|---|---|---|---|---|']
    for name,g in t.groupby('data', sort=False):
        share = lambda c: f"{g[c].mean():.1%} ({g[c].min():.1%} to {g[c].max():.1%})"
        lines.append(f"| {name} | {g.rows.max():,} | {', '.join(map(str, g.seed))} | {share('copies_found')} | {share('flips_in_top_tenth')} | {g.errors_on_clean.max()} |")
    return '\n'.join(lines)

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--data', nargs='+', default=list(DATA), choices=DATA)
    p.add_argument('--seeds', nargs='+', type=int, default=[1, 2, 3])
    p.add_argument('--max-items', type=int)
    a = p.parse_args()
    file = here/'results'/'audit.json'
    old = json.loads(file.read_text()) if file.exists() else []
    for name in a.data:
        for seed in a.seeds:
            new = measure(name, seed, a.max_items)
            old = [o for o in old if (o['data'], o['seed'])!=(name, seed)]+[new]
            old.sort(key=lambda o: (DATA.index(o['data']), o['seed']))
            write_atomic(file, json.dumps(old, indent=1)+'\n')
    write_atomic(here/'audit.md', f"""# Planted faults

`python benchmarks/audit.py` copies 50 training items into validation, and in another run changes 5 % of the labels at random, in real data after exact repeats are dropped (amazon has 8); a copy is found where it is named with its original, or where the
original is named as leaked. By chance a tenth of the changed labels would stand in the most suspect tenth. The mean over the seeds, and in brackets the lowest and the highest.

{table(old)}
""")

if __name__=='__main__': main()
