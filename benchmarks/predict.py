"""Rows a second of a saved model, in turn with ONNX, fastai's `predict` and `get_preds`, and the pipeline of transformers; and what 8-bit weights cost in accuracy.

    python benchmarks/predict.py speed --data amazon      # one model, five rounds, one thread, seconds of the processor
    python benchmarks/predict.py speed --threads 2        # by the clock, on an otherwise idle machine
    python benchmarks/predict.py int8 --seeds 1 2 3       # three models, each with its own split
    python benchmarks/predict.py table                    # write predict.md from results/predict.json
"""
import argparse, json, os, tempfile, time
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import numpy as np, onnxruntime, torch
from fastai.learner import Learner
from scipy import stats
from torch import nn
from sft_nb.all import *
from sft_nb.core.basics import cache_home, write_atomic
from sft_nb.data.task import get_task
from sft_nb.tasks.demo_data import make_demo
from run import Plain

here = Path(__file__).parent
FILE = here/'results'/'predict.json'
ROUNDS,BATCH,DRAWS = 5,64,2000
ROWS = dict(amazon=512, digits=512)

def data(name, seed=42):
    task = 'text' if name=='amazon' else 'image'
    demo = make_demo(task, cache_home()/'demo')
    return load_data(task, demo['source'], seed=seed, **demo.get('load', {}))

def onnx_scores(session, predictor, items):
    "The scores of an ONNX file in the order of the items: prepared, sorted by length and batched as `Predictor` does it"
    spec = predictor.spec
    rows = read_rows(items, spec.task, labelled=False)
    order = np.argsort([-len(o) for o in items], kind='stable') if spec.task.name=='text' else np.arange(len(items))
    out = []
    for b in spec.task.item_loader(spec, rows.iloc[order], BATCH):
        x = b[0] if isinstance(b, tuple) else b
        out.append(session.run(None, {k:v.numpy() for k,v in x.items()} if isinstance(x, dict) else {'image':x.numpy()})[0])
    return np.concatenate(out)[np.argsort(order)]

def plain_learner(learn):
    "fastai's Learner over the network as timm or transformers builds it, with the trained head; nothing of our model is in it"
    net = Plain(learn.dls.sft)
    net.net.load_state_dict(learn.model.net.state_dict())
    return Learner(learn.dls, net, loss_func=nn.CrossEntropyLoss())

def get_preds(learn, items):
    "Class numbers in the order of the items"
    dl = learn.dls.test_dl(items, bs=BATCH)
    z = learn.get_preds(dl=dl, reorder=False)[0]
    return z.argmax(1).numpy()[np.argsort(list(dl.get_idxs()))] if hasattr(dl, 'coder') else z.argmax(1).numpy()

def ways(name, learn, folder, work):
    "name -> function of the items that gives class numbers"
    predictor,vocab = load_predictor(folder),list(learn.dls.sft.vocab)
    at = {v:i for i,v in enumerate(vocab)}
    one = onnxruntime.SessionOptions()
    one.intra_op_num_threads = torch.get_num_threads()
    def session(**kw): return onnxruntime.InferenceSession(str(export_onnx(predictor, work/f'{len(kw)}.onnx', **kw)), one)
    def one_by_one(items): return np.array([at[str(learn.predict(o)[0])] for o in items])
    out = dict(predictor=lambda items: predictor.predict(items, batch_size=BATCH).prediction.map(at).to_numpy())
    exact = session()
    out['onnx'] = lambda items: onnx_scores(exact, predictor, items).argmax(1)
    if name=='amazon':
        from transformers import pipeline
        small,pipe = session(int8=True),pipeline('text-classification', model=str(folder), device='cpu', batch_size=BATCH)
        out['onnx_int8'] = lambda items: onnx_scores(small, predictor, items).argmax(1)
        out['pipeline'] = lambda items: np.array([at[o['label']] for o in pipe(items, truncation=True, max_length=predictor.spec.preprocess['max_length'])])
        out['pipeline_one'] = lambda items: np.array([at[o['label']] for o in pipe(items, truncation=True, batch_size=1, max_length=predictor.spec.preprocess['max_length'])])
    peer = plain_learner(learn)
    return {**out, 'get_preds':lambda items: get_preds(peer, items), 'predict_loop':one_by_one}

def speed(name):
    learn = sft_learner(data(name), head='hf' if name=='amazon' else None)
    now = time.process_time if torch.get_num_threads()==1 else time.perf_counter
    with learn.no_bar(), learn.no_logging(), tempfile.TemporaryDirectory() as d:
        learn.fit_head(3)
        folder = save_predictor(learn, Path(d)/'model', metrics={})
        spec = learn.dls.sft
        items = [str(o) for o in spec.split('valid')[spec.task.input_columns[0]]][:ROWS[name]]
        found,seconds = ways(name, learn, folder, Path(d)),{}
        want = found['predictor'](items)
        same = {k:float((f(items)==want).mean()) for k,f in found.items()}
        for _ in range(ROUNDS):
            for k,f in found.items():
                start = now()
                f(items)
                seconds.setdefault(k, []).append(now()-start)
    return dict(data=name, rows=len(items), batch=BATCH, threads=torch.get_num_threads(), seconds=seconds, same=same)

def drop(right, base, seed=0):
    "Difference of accuracy in points, and its 95 % interval by drawing rows, paired"
    d = 100*(right.astype(float)-base)
    drawn = d[np.random.default_rng(seed).integers(len(d), size=(DRAWS,len(d)))].mean(1)
    return float(d.mean()),*map(float, np.quantile(drawn, [.025,.975]))

def int8(seed):
    "A fine-tuned model and the same with 8-bit weights on rows that were held out"
    learn = sft_learner(data('amazon', seed), seed=seed)
    recipe = learn.dls.sft.task.recipe
    with learn.no_bar(), learn.no_logging(), tempfile.TemporaryDirectory() as d:
        learn.fine_tune(1, **{k:v for k,v in recipe.items() if k!='epochs'})
        predictor = load_predictor(save_predictor(learn, Path(d)/'model', metrics={}))
        held = learn.dls.sft.split('valid')
        items,target = list(held.text),held.label.map({v:i for i,v in enumerate(predictor.vocab)}).to_numpy()
        made = {k:export_onnx(predictor, Path(d)/f'{k}.onnx', int8=k=='int8') for k in ('float','int8')}
        z = {k:onnx_scores(onnxruntime.InferenceSession(str(p)), predictor, items) for k,p in made.items()}
        size = {k:p.stat().st_size for k,p in made.items()}
    right = {k:v.argmax(1)==target for k,v in z.items()}
    points,low,high = drop(right['int8'], right['float'])
    return dict(seed=seed, rows=len(items), float=float(right['float'].mean()), int8=float(right['int8'].mean()), points=points, low=low, high=high,
                changed=int((z['int8'].argmax(1)!=z['float'].argmax(1)).sum()), largest=float(np.abs(z['int8']-z['float']).max()), bytes=size)

NAMES = dict(predictor='`Predictor.predict`, batches of 64', onnx='ONNX, batches of 64', onnx_int8='ONNX with 8-bit linear layers, batches of 64', pipeline="transformers' `pipeline`, batches of 64",
             pipeline_one="transformers' `pipeline`, as it comes (one by one)", get_preds="fastai's `get_preds` over `test_dl`, batches of 64", predict_loop="fastai's `learn.predict` in a loop")

def speed_table(row):
    s = {k:np.array(v) for k,v in row['seconds'].items()}
    how = 'one thread, seconds of the processor' if row['threads']==1 else f"{row['threads']} threads, by the clock"
    lines = [f"**{row['data']}**, {row['rows']} rows, {how}", '', '| | rows a second against `learn.predict` | against `Predictor` | same class as `Predictor` |', '|---|---|---|---|']
    def ratio(a, b): return f"{np.median(a/b):.2f} ({(a/b).min():.2f} to {(a/b).max():.2f})"
    for k in (o for o in NAMES if o in s): lines.append(f"| {NAMES[k]} | {ratio(s['predict_loop'], s[k])} | {ratio(s['predictor'], s[k])} | {100*row['same'][k]:.1f} % |")
    return '\n'.join(lines)

def int8_table(rows):
    lines = ['| seed | rows held out | accuracy, float | accuracy, 8 bits | difference in points, 95 % | rows whose class changes | file |', '|---|---|---|---|---|---|---|']
    for r in rows:
        lines.append(f"| {r['seed']} | {r['rows']} | {100*r['float']:.1f} % | {100*r['int8']:.1f} % | {r['points']:+.2f} ({r['low']:+.2f} to {r['high']:+.2f}) | {r['changed']} | "
                     f"{r['bytes']['float']/1e6:.1f} → {r['bytes']['int8']/1e6:.1f} MB |")
    d = [r['points'] for r in rows]
    half = stats.t.ppf(.975, len(d)-1)*np.std(d, ddof=1)/len(d)**.5 if len(d)>1 else float('nan')
    return '\n'.join(lines)+f"\n\nMean difference {np.mean(d):+.2f} ± {half:.2f} points (95 % t interval over {len(d)} seeds, each with its own split and training)."

def page(found):
    return f"""# Prediction

`python benchmarks/predict.py` measures this. Every way gets the same list of texts or files and the same trained weights, and answers with one class an item: reading, tokenizing and decoding are
inside the time. They run in turn, {ROUNDS} rounds in one process; a figure is the median over the rounds of the ratio within a round (least to most). One run, one model a data set.
On one thread the time is that of the processor, so that reading in the background is paid for in full. By the clock every way may use both cores of the machine, which did nothing else; there reading
and computing overlap.

{chr(10).join(speed_table(o)+chr(10) for o in found['speed'])}
- *amazon*: review snippets, `pip:all-minilm-l6-v2` with the classifier of transformers (`head='hf'`), so that `pipeline` opens the same folder. *digits*: PNG files at 64 pixels, `pip:efficientnet-lite0`.
- `get_preds` is that of fastai's `Learner` over the network as timm or transformers builds it, with the same weights; it gets `dls.test_dl(items)`, where texts are sorted by length too. ONNX batches are
  prepared and sorted as `Predictor` does it.
- `Predictor` says which item is bad; `get_preds` does not.
- The heads in the first part were trained for three epochs on a frozen body, so that scores are close together and 8 bits change many classes. What they cost a fine-tuned model stands below.

## What 8 bits cost

`export_onnx(int8=True)`: dynamic quantization of the linear layers. *amazon*, `pip:all-minilm-l6-v2`, fine-tuned for one epoch with the recipe of the task; the 20 % that were held out.

{int8_table(found['int8'])}

The interval of a row draws the held-out rows, {DRAWS:,} times, paired. The table of words, half of this network, stays as it is: so the file does not shrink to a quarter. Other networks may lose more.
"""

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('what', choices=('speed','int8','table'))
    p.add_argument('--data', nargs='+', default=list(ROWS), choices=list(ROWS))
    p.add_argument('--threads', type=int, default=1, help='above 1 the time is that of the clock')
    p.add_argument('--seeds', type=int, nargs='+', default=[1,2,3])
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    found = json.loads(FILE.read_text()) if FILE.exists() else dict(speed=[], int8=[])
    def keep(kind, key, row):
        found[kind] = sorted([*(o for o in found[kind] if key(o)!=key(row)), row], key=key)
        write_atomic(FILE, json.dumps(found, indent=1)+'\n')
        print(json.dumps(row), flush=True)
    if a.what=='speed':
        for name in a.data: keep('speed', lambda o: (o['data'], o['threads']), speed(name))
    if a.what=='int8':
        for seed in a.seeds: keep('int8', lambda o: o['seed'], int8(seed))
    if found['speed'] and found['int8']: write_atomic(here/'predict.md', page(found))

if __name__=='__main__': main()
