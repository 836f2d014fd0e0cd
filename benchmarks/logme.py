"""LogME against what fine-tuning gives: one checkpoint cut at different depths, and one with fresh weights.

    python benchmarks/logme.py --data amazon --max-items 1000     # writes results/logme.json and logme.md
"""
import argparse, json, os, tempfile, time
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import pandas as pd, torch
from scipy.stats import kendalltau, spearmanr
from sft_nb.all import *
from sft_nb.core.basics import write_atomic
from sft_nb.tasks.demo_data import make_demo

here = Path(__file__).parent

def cut(folder, layers, fresh=False):
    "The packaged text checkpoint with its lowest `layers` layers"
    from transformers import AutoConfig, AutoModel
    ckpt,out = open_checkpoint('pip:all-minilm-l6-v2', task='text'),Path(folder)/f"{'fresh' if fresh else 'cut'}-{layers}"
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(ckpt.folder, num_hidden_layers=layers)
    net = AutoModel.from_config(config) if fresh else AutoModel.from_pretrained(ckpt.folder, config=config)
    net.save_pretrained(out)
    ckpt.tokenizer().save_pretrained(out)
    return str(out)

def tuned(source, ref, args, epochs):
    learn = sft_learner(load_data('text', source, checkpoint=ref, **args))
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(epochs, base_lr=6e-4)
    return evaluate(learn).metrics['accuracy']

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--data', default='amazon', choices=('amazon', 'tweets'))
    p.add_argument('--max-items', type=int)
    p.add_argument('--epochs', type=int, default=2)
    a = p.parse_args()
    demo = make_demo('text', Path(tempfile.gettempdir())/'sft_nb-bench')
    source,args = Path(demo['source']).with_name(f'{a.data}.csv'),dict(max_items=a.max_items)
    with tempfile.TemporaryDirectory() as d:
        refs = {cut(d, n):f'{n} layers' for n in (1, 2, 3, 4, 5, 6)} | {cut(d, 6, fresh=True):'6 layers, fresh weights'}
        ranked = rank_checkpoints(load_data('text', source, **args), list(refs))
        rows = []
        for r in ranked.itertuples():
            start = time.perf_counter()
            name = next(v for k,v in refs.items() if r.checkpoint.endswith(Path(k).name))
            rows.append(dict(checkpoint=name, logme=r.logme, parameters=int(r.parameters), seconds_features=round(r.seconds, 1),
                             accuracy=tuned(source, next(k for k,v in refs.items() if v==name), args, a.epochs), seconds_tuned=round(time.perf_counter()-start, 1)))
            print(rows[-1], flush=True)
    t = pd.DataFrame(rows)
    found = dict(data=a.data, max_items=a.max_items, epochs=a.epochs, spearman=float(spearmanr(t.logme, t.accuracy).statistic), kendall=float(kendalltau(t.logme, t.accuracy).statistic), rows=rows)
    write_atomic(here/'results'/'logme.json', json.dumps(found, indent=1)+'\n')
    lines = [f'| {o.checkpoint} | {o.logme:.4f} | {o.accuracy:.3f} | {o.parameters:,} | {o.seconds_features} | {o.seconds_tuned} |' for o in t.itertuples()]
    head = '| checkpoint | LogME | accuracy after fine-tuning | parameters | seconds of features | seconds of fine-tuning |\n|---|---|---|---|---|---|'
    write_atomic(here/'logme.md', f"""# LogME

`python benchmarks/logme.py`: {a.data}{f', {a.max_items:,} rows' if a.max_items else ''}, `pip:all-minilm-l6-v2` cut at six depths and with fresh weights, fine-tuned for {a.epochs} epochs, one seed.
Rank correlation of LogME and accuracy: Spearman {found['spearman']:.2f}, Kendall {found['kendall']:.2f}, over {len(rows)} candidates, which are of one family: it says little of others.

{head}
{chr(10).join(lines)}
""")

if __name__=='__main__': main()
