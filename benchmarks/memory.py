"""Peak memory and time of loading, fitting a head, evaluating and predicting rows of a Parquet file that are read when they are asked for; a fresh process for each size.

    python benchmarks/memory.py --rows 10000 30000 100000            # writes results/memory.json and memory.md; a few minutes
    python benchmarks/memory.py --rows 10000 100000 --read-whole     # the same with all rows read into memory
"""
import argparse, json, os, resource, subprocess, sys, tempfile, threading, time
from pathlib import Path
from sft_nb.tasks.demo_data import make_demo

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
here = Path(__file__).parent
FILE = here/'results'/'memory.json'
PHASES = ('load','fit_head','evaluate','stream')

def reviews():
    import pandas as pd
    from sft_nb.core.basics import cache_home
    from sft_nb.data.task import get_task
    return pd.read_csv(make_demo('text', cache_home()/'demo')['source'])

def write_rows(path, n, seed=0, part=10_000):
    "Two reviews of one kind and a number make a row"
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq
    rows,rng = reviews(),np.random.default_rng(seed)
    kinds = {k:list(o.text) for k,o in rows.groupby('label')}
    with pq.ParquetWriter(path, pa.schema([('text', pa.string()), ('label', pa.string())])) as out:
        for at in range(0, n, part):
            labels = rng.choice(list(kinds), min(part, n-at))
            texts = [' '.join(rng.choice(kinds[l], 2))+f' {at+i}' for i,l in enumerate(labels)]
            out.write_table(pa.table(dict(text=texts, label=labels)))

def tiny_bert(folder):
    "A BERT of two layers with fresh weights, and a tokenizer of the words of the reviews"
    import torch
    from transformers import BertConfig, BertModel
    from sft_nb.tasks.small_nets import word_pieces
    tok = word_pieces(list(reviews().text.str.lower()))
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tok), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64, pad_token_id=0)).save_pretrained(folder)
    tok.save_pretrained(folder)

class Watch:
    "Highest anonymous memory (what no file backs) since the last look"
    def __init__(self):
        self.most = 0
        threading.Thread(target=self.run, daemon=True).start()
    def now(self): return int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1])/1e3
    def run(self):
        while True:
            self.most = max(self.most, self.now())
            time.sleep(.02)
    def look(self):
        most,self.most = self.most,0
        return round(most, 1)

def measure(folder, lazy):
    "What one size takes, in this process"
    folder = Path(folder)
    from sft_nb.evaluation.evaluate import evaluate
    from sft_nb.data.load import load_data
    from sft_nb.deployment.predictor import load_predictor, save_predictor
    from sft_nb.training.learner import sft_learner
    warm = load_data('text', folder/'warm.parquet', checkpoint=str(folder/'bert'), lazy=lazy)
    watch,out = Watch(),dict(before=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3)
    del warm
    def phase(name, f):
        watch.look()
        start = time.perf_counter()
        found = f()
        out[name] = dict(seconds=round(time.perf_counter()-start, 2), anonymous=watch.look(), peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3)
        return found
    def trained():
        learn = sft_learner(phase('load', lambda: load_data('text', folder/'rows.parquet', checkpoint=str(folder/'bert'), lazy=lazy)))
        with learn.no_bar(), learn.no_logging(): phase('fit_head', lambda: learn.fit_head(2))
        return save_predictor(learn, folder/'model', metrics={})
    model = load_predictor(trained())
    ev = phase('evaluate', lambda: evaluate(model, folder/'rows.parquet', lazy=lazy, out=folder/'ev.parquet'))
    out['accuracy'],out['rows'] = ev.metrics['accuracy'],len(ev)
    del ev
    import pandas as pd
    items = folder/'rows.parquet' if lazy else pd.read_parquet(folder/'rows.parquet')
    n = phase('stream', lambda: sum(map(len, model.stream(items))) if lazy else len(model.predict(items)))
    assert n==out['rows']
    return out

def in_new_process(n, lazy):
    with tempfile.TemporaryDirectory() as d:
        tiny_bert(Path(d)/'bert')
        write_rows(Path(d)/'rows.parquet', n)
        write_rows(Path(d)/'warm.parquet', 64)
        run = subprocess.run([sys.executable, __file__, '--measure', d, *([] if lazy else ['--read-whole'])], capture_output=True, text=True, env={**os.environ, 'SFT_NB_HOME':f'{d}/home'})
        if run.returncode: raise SystemExit(run.stderr[-3000:])
        return dict(json.loads(run.stdout.splitlines()[-1]), lazy=lazy, bytes=(Path(d)/'rows.parquet').stat().st_size)

def table(rows):
    lines = ['| rows | read | peak of the process, MB | more than before the first row | '+' | '.join(f'{p}, s' for p in PHASES)+' | µs a row, all |', '|'+'---|'*(5+len(PHASES))]
    for r in rows:
        seconds = [r[p]['seconds'] for p in PHASES]
        lines.append(f"| {r['rows']:,} | {'as needed' if r['lazy'] else 'whole'} | {r['stream']['peak']:,.0f} | {r['stream']['peak']-r['before']:+,.0f} | "+' | '.join(f'{s:.1f}' for s in seconds)+f" | {1e6*sum(seconds)/r['rows']:,.0f} |")
    return '\n'.join(lines)

def parts_table(rows):
    lines = ['| rows | read | '+' | '.join(PHASES)+' |', '|'+'---|'*(2+len(PHASES))]
    for r in rows: lines.append(f"| {r['rows']:,} | {'as needed' if r['lazy'] else 'whole'} | "+' | '.join(f"{r[p]['anonymous']:,.0f}" for p in PHASES)+' |')
    return '\n'.join(lines)

def page(rows):
    return f"""# Rows that are not read into memory

`python benchmarks/memory.py` measures this. Rows of a Parquet file, each two reviews of the demonstration and a number; a BERT of two layers and 32 channels with fresh weights, so that the network costs
little beside the rows. Load and check, `fit_head(2)` on the frozen body, `evaluate` of all rows into a Parquet file, and all rows predicted by `stream`. A fresh process for each size, one run, one thread.

{table(rows)}

*Before the first row* the libraries are loaded and 64 other rows were read. *Read whole* has the same calls with `lazy=False`, and `predict` of a DataFrame for `stream`.

Highest anonymous memory in each step, MB (sampled every 20 ms; pages of files that are mapped into memory are not in it, the system takes them back when it needs them):

{parts_table(rows)}

Of each row its name, place, target, side, number of tokens, prediction, probability and loss are kept in memory: that part grows with the rows. Texts and tokens are not kept.
"""

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--rows', type=int, nargs='+', default=[10_000, 30_000, 100_000])
    p.add_argument('--read-whole', action='store_true', help='read all rows into memory, for comparison')
    p.add_argument('--measure', metavar='FOLDER', help='measure in this process and print it')
    a = p.parse_args()
    if a.measure: return print(json.dumps(measure(a.measure, not a.read_whole)))
    from sft_nb.core.basics import write_atomic
    done = {(o['lazy'],o['rows']):o for o in (json.loads(FILE.read_text()) if FILE.exists() else [])}
    for n in a.rows:
        done[not a.read_whole,n] = in_new_process(n, not a.read_whole)
        print(json.dumps(done[not a.read_whole,n]), flush=True)
        rows = [done[k] for k in sorted(done, key=lambda k: (not k[0],k[1]))]
        write_atomic(FILE, json.dumps(rows, indent=1)+'\n')
        write_atomic(here/'memory.md', page(rows))

if __name__=='__main__': main()
