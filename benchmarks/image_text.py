"""Picture only, text only, both: stamps with captions in a language that the text encoder was not trained for

    python benchmarks/image_text.py                  # three seeds, five folds each; rewrites results/image_text.json and the table of image_text.md
    python benchmarks/image_text.py --language fi    # captions in another language, printed and not written
"""
import argparse, json, os, sys, time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import numpy as np, pandas as pd, torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from sft_nb.all import *
from sft_nb.checkpoints.assets import fetch
from sft_nb.core.basics import write_atomic
from sft_nb.training.cache import _in_place
from sft_nb.training.schedule import _Rows
from sft_nb.tasks.demo_data import stamps_table

here = Path(__file__).parent
ARMS = {'picture only':'text', 'text only':'image', 'both':None}
FIT = dict(epochs=10, lr=2e-3)

def features(table, missing):
    "A learner on all rows with what its frozen towers give for each of them"
    rows = table if missing is None else table.assign(**{missing:pd.Series([None]*len(table), dtype=object)})
    learn = sft_learner(load_data('image_text', rows, group='subject', size=96, resize='pad', augment=False, batch_size=32))
    return learn,activations(learn, cache_border(learn.model), learn.spec.rows)

def fresh(learn, seed):
    "The learner with a new head"
    with seeded(seed): learn.model.head.top.reset_parameters()
    for p in learn.model.head.missing.values(): torch.nn.init.zeros_(p)
    learn.opt,learn.seed,learn.state.fits = None,seed,0

def held_out(learn, acts, seed, folds):
    "Whether each row is predicted right by the head of the fold that it is held out of"
    spec,right = replace(learn.spec, seed=seed),np.full(len(learn.spec.rows), np.nan)
    y = spec.task.cached_targets(spec, spec.rows)
    def part(rows, shuffle):
        source = DataLoader(range(len(rows)), bs=32, shuffle=shuffle, device=learn.dls.device)
        return BorderLoader(source, [_Rows(acts, rows)], y[rows], cache_border(learn.model))
    for fold in fold_specs(spec, folds):
        train,valid = (np.flatnonzero(fold.rows.split==o).tolist() for o in ('train','valid'))
        fresh(learn, seed)
        with learn.no_bar(), learn.no_logging(), _in_place(learn, DataLoaders(part(train, True), part(valid, False), device=learn.dls.device)):
            learn.fit_one_cycle(FIT['epochs'], FIT['lr'])
        with torch.no_grad(): said = learn.model.eval().suffix(cache_border(learn.model), acts.batch(valid)).argmax(1)
        right[valid] = (said==y[valid]).float().numpy()
    order = [int(o.split()[1]) for o in spec.rows.row]
    return right[np.argsort(order)]

def interval(values, groups, draws=2000):
    "Mean over seeds and rows, and its 95 % interval by drawing groups of rows"
    rng,rows = np.random.default_rng(0),values.mean(0)
    sums = pd.DataFrame(dict(s=rows, n=1.)).groupby(np.asarray(groups)).sum().to_numpy()
    drawn = np.array([(lambda o: o[:,0].sum()/o[:,1].sum())(sums[rng.integers(len(sums), size=len(sums))]) for _ in range(draws)])
    return [float(rows.mean()), *(float(o) for o in np.percentile(drawn, [2.5,97.5]))]

def measure(language, seeds, folds):
    table = stamps_table(fetch('stamps'), language).dropna().reset_index(drop=True)
    right,seconds = {},{}
    for arm,missing in ARMS.items():
        start = time.perf_counter()
        learn,acts = features(table, missing)
        right[arm] = np.stack([held_out(learn, acts, s, folds) for s in seeds])
        seconds[arm] = round(time.perf_counter()-start, 1)
        print(arm, right[arm].mean(1).round(3).tolist(), f'{seconds[arm]} s', file=sys.stderr, flush=True)
    gains = {f'both − {a}':interval(right['both']-right[a], table.subject) for a in ('picture only','text only')}
    return dict(language=language, rows=len(table), groups=int(table.subject.nunique()), classes=int(table.label.nunique()), majority=float(table.label.value_counts(normalize=True).iloc[0]),
                seeds=list(seeds), folds=folds, fit=FIT, accuracy={a:interval(v, table.subject) for a,v in right.items()}, gain=gains,
                by_seed={a:v.mean(1).round(4).tolist() for a,v in right.items()}, seconds=seconds, torch=torch.__version__, checkpoint=get_task('image_text').checkpoint)

def lines(r):
    "The table as markdown"
    def span(o, sign=''): return f'{100*o[0]:{sign}.1f} % ({100*o[1]:{sign}.1f} to {100*o[2]:{sign}.1f})'
    rows = [f"| {a} | {span(o)} | {', '.join(f'{100*v:.1f}' for v in r['by_seed'][a])} |" for a,o in r['accuracy'].items()]
    gains = [f"| {a} | {span(o, '+')} points | |".replace(' % (', ' (') for a,o in r['gain'].items()]
    return '\n'.join(['| what the model gets | accuracy, 95 % interval | by seed |', '|---|---|---|', *rows, *gains, '',
                      f"{r['rows']} stamps in {r['groups']} groups, {r['classes']} kinds (the largest has {100*r['majority']:.1f} %); captions in language `{r['language']}`; "
                      f"{len(r['seeds'])} seeds, {r['folds']} folds each."])

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--language', default='eu')
    p.add_argument('--seeds', type=int, nargs='+', default=[1,2,3])
    p.add_argument('--folds', type=int, default=5)
    a = p.parse_args()
    r = measure(a.language, a.seeds, a.folds)
    print(lines(r))
    if (a.language, a.seeds, a.folds)!=('eu', [1,2,3], 5): return
    write_atomic(here/'results'/'image_text.json', json.dumps(r, indent=1)+'\n')
    page = here/'image_text.md'
    before,_,rest = page.read_text(encoding='utf-8').partition('<!-- table -->')
    write_atomic(page, f"{before}<!-- table -->\n{lines(r)}\n<!-- /table -->{rest.partition('<!-- /table -->')[2]}")

if __name__=='__main__': main()
