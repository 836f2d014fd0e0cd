"""Fine-tuning a small general translation model for one kind of text, against leaving it as it is and against training on that kind alone.

    python benchmarks/translation.py                 # three seeds; writes results/translation.json and translation.md
    python benchmarks/translation.py --seeds 4 5     # other seeds; those that were measured before stay
"""
import argparse, json, os
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import numpy as np, pandas as pd, torch
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest
from scipy import stats
from sft_nb.all import *
from sft_nb.core import cache_home, get_task, write_atomic

here = Path(__file__).parent
EPOCHS = 40, 80 # on both sides; the better one by chrF of the validation rows is taken

def split(rows, seed):
    "Other rows for training, validation and test, in the proportions of the demonstration"
    place = np.random.default_rng(seed).permutation(len(rows))/len(rows)
    return rows.assign(split=np.select([place<.55, place<.7], ['test','valid'], 'train'))

def trained(rows, checkpoint, seed, fit, freeze='body'):
    "A learner with its best epoch by chrF of the validation rows"
    learn = sft_learner(load_data('translation', rows, checkpoint=str(checkpoint), seed=seed), freeze=freeze, seed=seed)
    with learn.no_bar(), learn.no_logging(): fit(learn, KeepBest())
    return learn

def best(learners):
    "(place, learner) of the one with the highest chrF on the validation rows"
    i = int(np.argmax([evaluate(o).metrics['chrf'] for o in learners]))
    return i,learners[i]

def measure(seed, demo):
    folder = Path(demo['source']).parent
    rows = split(pd.read_csv(demo['source'])[['source','target']], seed)
    untuned = sft_learner(load_data('translation', rows, checkpoint=str(folder/'general'), seed=seed), seed=seed)
    tuned = best([trained(rows, folder/'general', seed, lambda learn, keep, n=n: learn.fine_tune(**{**demo['fine_tune'], 'epochs':n}, cbs=keep)) for n in EPOCHS])
    alone = best([trained(rows, folder/'fresh', seed, lambda learn, keep, n=n: learn.fit_one_cycle(n, 2e-3, cbs=keep), freeze=None) for n in EPOCHS])
    evs = dict(untuned=evaluate(untuned, 'test'), alone=evaluate(alone[1], 'test'), fine_tuned=evaluate(tuned[1], 'test'))
    target = list(evs['untuned'].rows.target)
    said = {k:list(v.rows.prediction) for k,v in evs.items()}
    notes,p = {},{}
    for base in ('untuned','alone'):
        names,found = PairedTest([(base, said[base]), ('fine_tuned', said['fine_tuned'])], dict(chrF=CHRF(references=[target]), BLEU=BLEU(references=[target])), [target],
                                 test_type='bs', n_samples=1000)()
        p[base] = {m:float(found[m][1].p_value) for m in ('chrF2','BLEU')}
        notes = {m:str(s) for m,s in names.items()}
    return dict(seed=seed, **{f'n_{s}':int((rows.split==s).sum()) for s in ('train','valid','test')}, epochs=dict(alone=EPOCHS[alone[0]], fine_tuned=EPOCHS[tuned[0]]), p=p, signature=notes,
                **{k:{m:v.metrics[m] for m in ('chrf','bleu','exact','length_ratio')} for k,v in evs.items()})

def spread(values):
    half = stats.t.ppf(.975, len(values)-1)*np.std(values, ddof=1)/len(values)**.5 if len(values)>1 else float('nan')
    return f'{np.mean(values):.1f} ± {half:.1f}'

def table(rows):
    names = dict(untuned='the general model as it is', alone='trained on this kind of text alone', fine_tuned='general model, fine-tuned')
    lines = ['| | chrF | BLEU | exact | fine-tuned minus this, chrF | p, seed by seed |', '|---|---|---|---|---|---|']
    for k,what in names.items():
        gap = spread([r['fine_tuned']['chrf']-r[k]['chrf'] for r in rows]) if k!='fine_tuned' else ''
        p = ', '.join(f"{r['p'][k]['chrF2']:.3f}" for r in rows) if k!='fine_tuned' else ''
        lines.append(f"| {what} | {spread([r[k]['chrf'] for r in rows])} | {spread([r[k]['bleu'] for r in rows])} | {np.mean([r[k]['exact'] for r in rows]):.2f} | {gap} | {p} |")
    return '\n'.join(lines)

def page(rows):
    r = rows[0]
    return f"""# Translation

`python benchmarks/translation.py` measures this and writes this page. English to French, sentences of the interface of Gramps. A Transformer of 1.7 million parameters was trained once on the
{r['n_general']:,} sentences of the general part; here it is fine-tuned for descriptions of filters and options. {len(rows)} seeds, each with its own split into {r['n_train']} pairs to train on,
{r['n_valid']} to choose the epoch by chrF, and {r['n_test']} held out, on which everything below was measured.

{table(rows)}

± is half of a 95 % t interval over the seeds; p is that of sacrebleu's paired bootstrap over the held-out sentences, 1,000 draws, for each seed ({', '.join(str(o['seed']) for o in rows)}).
*Alone* has the same architecture, tokenizer and split with fresh weights. Both sides were trained for {' and for '.join(map(str, EPOCHS))} epochs, and the better one by validation chrF was taken.

- chrF: `{r['signature']['chrF2']}`
- BLEU: `{r['signature']['BLEU']}`

The sentences of this part resemble each other, so that a little training goes far, also from fresh weights. It is one domain of one project, one pair of languages, and one pretrained model.
"""

def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('--seeds', type=int, nargs='+', default=[1,2,3])
    seeds = a.parse_args().seeds
    demo = get_task('translation').demo(cache_home()/'demo')
    n_general = len(pd.read_csv(Path(demo['source']).parent/'general.csv'))
    file = here/'results'/'translation.json'
    rows = {r['seed']:r for r in json.loads(file.read_text())} if file.exists() else {}
    for seed in seeds:
        rows[seed] = dict(measure(seed, demo), n_general=n_general)
        done = [rows[s] for s in sorted(rows)]
        write_atomic(file, json.dumps(done, indent=1)+'\n')
        write_atomic(here/'translation.md', page(done))
        print(json.dumps(rows[seed]), flush=True)

if __name__=='__main__': main()
