"""A packaged Whisper on telephone prompts: what the cut window and the cache save, and what fine-tuning changes.

    python benchmarks/speech.py step                 # one training step, cached and cut against full training at 30 s
    python benchmarks/speech.py wer --seeds 1 2 3    # zero-shot against fine-tuned; seeds that were measured before stay
"""
import argparse, json, os, time
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import numpy as np, pandas as pd, torch
from fastai.callback.core import Callback
from scipy import stats
from sft_nb.all import *
from sft_nb.core.basics import cache_home, write_atomic
from sft_nb.data.task import get_task
from sft_nb.data.sounds import sound_seconds
from sft_nb.tasks.demo_data import make_demo

here = Path(__file__).parent
BATCH = 16

class Steps(Callback):
    "Seconds of each epoch's training part, which is one batch here: reading it, forward, backward, optimizer"
    def before_fit(self): self.took = []
    def before_train(self): self.start = time.perf_counter()
    def after_train(self): self.took.append(time.perf_counter()-self.start)

def timed(rows, window, freeze, epochs):
    "(learner, seconds of a step: median behind the first)"
    learn,steps = sft_learner(load_data('speech', rows, window=window, batch_size=BATCH), freeze=freeze, metrics=[], seed=1),Steps()
    with learn.no_bar(), learn.no_logging(), frozen_cache(learn, quiet=True): learn.fit(epochs, 1e-5, cbs=steps)
    return learn,float(np.median(steps.took[1:]))

def step(demo):
    "The same batch both ways; the window is cut as for all the prompts, not for this batch"
    rows = pd.read_csv(demo['source'])[['audio','text']]
    seconds = rows.audio.map(sound_seconds)
    window = float(np.ceil(2*seconds.max())/2)
    rows = rows.sample(BATCH+2, random_state=1).assign(split=['train']*BATCH+['valid']*2).reset_index(drop=True)
    cut,fast = timed(rows, window, 'body', 12)
    full,slow = timed(rows, 'whole', None, 4)
    trains = lambda learn: sum(p.numel() for p in learn.model.parameters() if p.requires_grad)
    return dict(batch=BATCH, window=window, fast=fast, slow=slow, ratio=slow/fast, threads=torch.get_num_threads(), trained_fast=trains(cut), trained_slow=trains(full))

def wer(seed, demo):
    dls = load_data('speech', demo['source'], **demo['load'], seed=seed)
    learn = sft_learner(dls, seed=seed)
    zero = evaluate(learn)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(**demo['fine_tune'])
    tuned = evaluate(learn)
    table = tuned.compare({'zero':zero}).set_index('metric')[['value','other','difference','low','high','verdict']]
    ends = {k:ev.report().set_index('metric')[['low','high']].T.to_dict('list') for k,ev in (('zero',zero), ('tuned',tuned))}
    return dict(seed=seed, n_train=int((dls.sft.rows.split=='train').sum()), n_valid=len(tuned), words=int(tuned.scores().sums[:,1].sum()), recipe=demo['fine_tune'],
                metrics=table.T.to_dict(), intervals=ends)

def spread(values, f='{:.3f}'):
    half = stats.t.ppf(.975, len(values)-1)*np.std(values, ddof=1)/len(values)**.5 if len(values)>1 else float('nan')
    return f.format(np.mean(values))+' ± '+'{:.3f}'.format(half)

NAMES = dict(wer='WER', cer='CER', wer_plain='WER, only case and punctuation dropped', cer_plain='CER, only case and punctuation dropped')

def tables(rows):
    means = ['| | zero-shot | fine-tuned | difference, paired by seed |', '|---|---|---|---|']
    for k,name in NAMES.items():
        o = [r['metrics'][k] for r in rows]
        means.append(f"| {name} | {spread([m['other'] for m in o])} | {spread([m['value'] for m in o])} | {spread([m['difference'] for m in o], '{:+.3f}')} |")
    each = ['| seed | zero-shot WER | fine-tuned WER | difference | |', '|---|---|---|---|---|']
    for r in rows:
        m,(z,t) = r['metrics']['wer'],(r['intervals'][k]['wer'] for k in ('zero','tuned'))
        each.append(f"| {r['seed']} | {m['other']:.3f} ({z[0]:.3f} to {z[1]:.3f}) | {m['value']:.3f} ({t[0]:.3f} to {t[1]:.3f}) | {m['difference']:+.3f} ({m['low']:+.3f} to {m['high']:+.3f}) | {m['verdict']} |")
    return '\n'.join(means),'\n'.join(each)

def step_text(s):
    if not s: return ''
    return f"""## A training step

The same {s['batch']} prompts, one thread, one run: reading the batch, forward, backward, optimizer. With the encoder frozen and cached and the window cut to {s['window']:g} s (the longest prompt): **{s['fast']:.2f} s**.
All of the network trained, nothing cached, 30 s heard: **{s['slow']:.2f} s**, {s['ratio']:.1f} times as long. The first trains {s['trained_fast']/1e6:.1f} million parameters, the second {s['trained_slow']/1e6:.1f}. Medians;
what the cache costs once (one pass of the encoder over the cut window) is not in it.
"""

def wer_text(rows):
    if not rows: return ''
    (means,each),r = tables(rows),rows[0]
    fit = r['recipe']
    return f"""## Zero-shot and fine-tuned

{len(rows)} seeds, each with a new split by normalized text, 20 % held out (seed {r['seed']}: {r['n_train']} prompts to train on, {r['n_valid']} held out with {r['words']} words). Both models hear 30 s.

{means}

± is half of a 95 % t interval over the seeds, whose held-out prompts overlap. Seed by seed, with 95 % bootstrap intervals, drawn by prompts of the same words together:

{each}

The recipe (decoder alone, {fit['freeze_epochs']} epochs, highest rate {fit['head_lr']:g}) was chosen on splits 11 and 12 of the same prompts, before anything was measured on the seeds above: with the rate of
2e-5 that was taken before, fine-tuning gained nothing on one of them. No epoch is chosen on held-out prompts.
"""

def page(found):
    return f"""# Speech

`python benchmarks/speech.py step wer` measures this and writes this page. Telephone prompts of Asterisk of at most 10 s: one voice, 8 kHz, often two or three words; `pip:whisper-tiny.en`.

{step_text(found.get('step'))}
{wer_text(found.get('wer', []))}
It is one speaker in one setting: what is learnt is how these prompts are worded and written as much as how they sound.
"""

def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('what', nargs='*', default=['step','wer'], choices=['step','wer'])
    a.add_argument('--seeds', type=int, nargs='+', default=[1,2,3])
    args,file = a.parse_args(),here/'results'/'speech.json'
    torch.set_num_threads(1)
    (cache_home()/'demo').mkdir(parents=True, exist_ok=True)
    demo = make_demo('speech', cache_home()/'demo')
    for what in args.what:
        for seed in args.seeds if what=='wer' else [None]:
            new = step(demo) if what=='step' else wer(seed, demo)
            print(json.dumps(new), flush=True)
            found = json.loads(file.read_text()) if file.exists() else {}
            if what=='step': found['step'] = new
            else: found['wer'] = sorted([r for r in found.get('wer', []) if r['seed']!=seed]+[new], key=lambda r: r['seed'])
            write_atomic(file, json.dumps(found, indent=1)+'\n')
            write_atomic(here/'speech.md', page(found))

if __name__=='__main__': main()
