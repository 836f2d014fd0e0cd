"""`learn.fine_tune()` on 8, 16 and 64 texts per class against the recipe of SetFit (Tunstall et al., arXiv:2209.11055) and a logistic regression on frozen features.

    python benchmarks/few_shot.py --data bbc --shots 8 16 --seeds 1 2 3   # rows join those that are there
    python benchmarks/few_shot.py table                                   # rewrite benchmarks/few_shot.md

The peer is the package `setfit` (pip install setfit) with its defaults: one epoch of the cosine loss over pairs, 2e-5, batches of 16, then a logistic regression on the embeddings; for each
text 20 pairs of one class and 20 of two (`num_iterations=20`, R of §3), since all pairs would take hours. All ways begin from the same weights, read the same rows, and run in turn in this process.
"""
import argparse, json, os, tempfile, warnings
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import numpy as np, pandas as pd, torch
from sft_nb.checkpoints.assets import fetch
from sft_nb.core.basics import write_atomic
import sets
from defaults import halves, interval, logistic, ours, said, seeded_all, timed, warm

here = Path(__file__).parent
FILE = here/'results'/'few_shot.json'
SHOTS,PAIRS = (8, 16, 64),20

def draw(name, shots, seed, valid=400):
    "So many training rows per class, and the held-out rows"
    train,held = halves(sets.table(name, 1500, seed, valid))
    some = train.groupby('label', group_keys=False)[train.columns.tolist()].apply(lambda o: o.sample(min(shots, len(o)), random_state=seed))
    return pd.concat([some, held], ignore_index=True)

def setfit(rows, seed):
    "The package `setfit` with its defaults, but for the number of pairs"
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    seeded_all(seed)
    train,held = halves(rows)
    model = SetFitModel.from_pretrained(str(fetch('all-minilm-l6-v2')), labels=sorted(rows.label.unique()), device='cpu')
    model.model_body.max_seq_length = 128
    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(out, num_iterations=PAIRS, seed=seed, save_strategy='no', logging_strategy='no', report_to='none', show_progress_bar=False)
        t = Trainer(model=model, args=args, train_dataset=Dataset.from_dict(dict(text=list(train.text), label=list(train.label))))
        t.train()
    return dict(accuracy=float((np.array(model.predict(list(held.text)))==held.label.to_numpy()).mean()))

def measure(name, shots, seed):
    rows = draw(name, shots, seed)
    row = dict(data=name, shots=shots, seed=seed, n_train=int((rows.split=='train').sum()), n_valid=int((rows.split=='valid').sum()))
    for way,f in dict(ours=ours, setfit=setfit, logistic=logistic).items(): row[way] = timed(f, rows, seed)
    return row

def run(names, shots, seeds):
    warm()
    import setfit as package
    package.Trainer
    kept = json.loads(FILE.read_text())['rows'] if FILE.exists() else []
    for name,n,seed in ((a, b, c) for a in names for b in shots for c in seeds):
        row = measure(name, n, seed)
        kept = [r for r in kept if (r['data'],r['shots'],r['seed'])!=(name,n,seed)]+[row]
        write_atomic(FILE, json.dumps(dict(rows=kept, threads=torch.get_num_threads(), torch=torch.__version__), indent=1)+'\n')
        print(name, n, seed, {k:(round(v['accuracy'], 3), round(v['seconds'], 1)) for k,v in row.items() if isinstance(v, dict)}, flush=True)

def table():
    rows = json.loads(FILE.read_text())['rows']
    lines = ['| data | texts per class | draws | ours | seconds | SetFit | ours − SetFit | times the time of ours | logistic | ours − logistic |', '|'+'---|'*10]
    for name,n in sorted({(r['data'],r['shots']) for r in rows}):
        some = [r for r in rows if (r['data'],r['shots'])==(name,n)]
        own = np.array([r['ours']['accuracy'] for r in some])
        cells = [name, str(n), str(len(some)), f'{own.mean():.3f}', f"{np.mean([r['ours']['seconds'] for r in some]):.0f}"]
        for way in ('setfit', 'logistic'):
            other = np.array([r[way]['accuracy'] for r in some])
            cells += [f'{other.mean():.3f}', said(*interval(100*(own-other)))]
            if way=='setfit': cells.append(f"{np.mean([r[way]['seconds']/r['ours']['seconds'] for r in some]):.2f}")
        lines.append('| '+' | '.join(cells)+' |')
    text = (here/'few_shot.md').read_text()
    head,rest = text.split('<!-- table -->')
    write_atomic(here/'few_shot.md', head+'<!-- table -->\n'+'\n'.join(lines)+'\n<!-- /table -->'+rest.split('<!-- /table -->')[1])
    print('\n'.join(lines))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', nargs='?', choices=['table'], help='only rewrite the table')
    p.add_argument('--data', nargs='*', choices=sets.PROOF['texts'], default=['bbc'])
    p.add_argument('--shots', type=int, nargs='*', default=list(SHOTS))
    p.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    a = p.parse_args()
    warnings.filterwarnings('ignore', category=FutureWarning)
    if a.what!='table': run(a.data, a.shots, a.seeds)
    table()
