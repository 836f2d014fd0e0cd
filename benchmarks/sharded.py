"""Memory of each process while a language model trains: in one process, in two under DDP, in two under FSDP2; on CPUs (accelerate's `--multi_gpu` stands for several processes there too).

    python benchmarks/sharded.py            # writes results/sharded.json and sharded.md; a few minutes
    python benchmarks/sharded.py --width 512 --layers 8
"""
import argparse, ctypes, json, os, subprocess, sys, tempfile
from pathlib import Path
from memory import Watch

here = Path(__file__).parent
WORDS = 'river stone cloud window garden letter winter music market silver summer bridge forest candle mirror'.split()
LAUNCH = [sys.executable, '-m', 'accelerate.commands.launch', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no']
WAYS = {'one process':[sys.executable], 'two, DDP':[*LAUNCH[:3], '--multi_gpu', *LAUNCH[3:]], 'two, FSDP2':[*LAUNCH[:3], '--use_fsdp', '--fsdp_version', '2', *LAUNCH[3:]]}

def measure(folder, out):
    "What this process takes; a file of its number is written"
    import pandas as pd, torch
    from fastai.callback.core import Callback
    from sft_nb.all import load_data, process_rank, sft_learner
    class Steps(Callback):
        "Highest memory of each step, and what is held after it"
        def before_fit(self): self.most,self.held = [],[]
        def before_batch(self): watch.look()
        def after_batch(self):
            if not self.training: return
            self.most.append(watch.look())
            ctypes.CDLL('libc.so.6').malloc_trim(0)
            self.held.append(watch.now())
    torch.set_num_threads(1)
    rows = pd.DataFrame(dict(prompt=[' '.join(WORDS[i%8:i%8+6]) for i in range(12)], completion=[' '.join(WORDS[i%5:i%5+6]) for i in range(12)]))
    learn = sft_learner(load_data('chat', rows, checkpoint=str(folder), valid=.2, batch_size=2, seed=0), freeze=None)
    n,watch,steps = sum(p.numel() for p in learn.model.parameters()),Watch(),Steps()
    before = watch.now()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4, cbs=steps)
    found = dict(parameters=n, before=before, first=steps.most[0], steps=max(steps.most[2:]), held=max(steps.held[2:]), loss=[h['valid_loss'] for h in learn.history])
    Path(f'{out}-{process_rank()}.json').write_text(json.dumps(found))

def run(way, folder, out):
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1', 'TOKENIZERS_PARALLELISM':'false', 'SFT_NB_HOME':str(folder/'home'), 'CUDA_VISIBLE_DEVICES':'', 'MALLOC_MMAP_THRESHOLD_':'1000000'}
    r = subprocess.run([*WAYS[way], __file__, '--inner', str(folder/'llama'), str(out)], env=env, capture_output=True, text=True)
    if r.returncode: raise SystemExit(r.stderr[-2000:])
    return [json.loads(p.read_text()) for p in sorted(out.parent.glob(f'{out.name}-*.json'))]

def table(found):
    import torch
    lines = [f"| {way} | {i} | {o['before']:,.0f} | {o['held']:,.0f} | {o['steps']:,.0f} | {o['loss'][0]:.5f} |" for way,all_ in found.items() for i,o in enumerate(all_)]
    n = found['one process'][0]['parameters']
    return f'''# Memory of processes that train one model

`python benchmarks/sharded.py` measures this. A Llama of {n/1e6:,.0f} million parameters with fresh weights, all of them trained with Adam in float32 (weights take {4*n/1e6:,.0f} MB, with gradients and the state of Adam
{16*n/1e6:,.0f} MB), batches of two short conversations, one thread. Anonymous memory of each process: before the fit, held after a step, and the most within one (sampled every 20 ms), from the third step
on; what is freed goes back to the system at once (`MALLOC_MMAP_THRESHOLD_`). **One run, on CPUs (gloo), with torch
{torch.__version__}**; it says what a process holds, nothing of speed, and nothing of GPUs, where the caches of the allocator come on top.

| | process | before the fit, MB | held after a step, MB | most in a step, MB | loss of the validation |
|---|---|---|---|---|---|
{chr(10).join(lines)}

Before and after a fit each process has the whole model, also under FSDP2. Within it each has a share of weights, gradients and the state of Adam, and whole for a moment the layer that runs, the embeddings and the head.
DDP keeps all of it in each process, and a copy of the gradients in its buckets.

Without `MALLOC_MMAP_THRESHOLD_=1000000` the C library keeps much of what is freed: a run without it had at most 1,486 MB in one process and 1,878 and 2,051 MB in the two under FSDP2, whose layers come and go in each step.
'''

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--width', type=int, default=640)
    p.add_argument('--layers', type=int, default=8)
    p.add_argument('--inner', nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.inner: return measure(*map(Path, a.inner))
    from sft_nb.tasks.small_nets import small_llama
    with tempfile.TemporaryDirectory() as d:
        small_llama(WORDS, Path(d)/'llama', width=a.width, layers=a.layers, longest=256, initializer_range=.02, num_attention_heads=a.width//64, num_key_value_heads=a.width//64, intermediate_size=4*a.width)
        found = {way:run(way, Path(d), Path(d)/f'out{i}') for i,way in enumerate(WAYS)}
    (here/'results'/'sharded.json').write_text(json.dumps(found, indent=1)+'\n')
    (here/'sharded.md').write_text(table(found))

if __name__=='__main__': main()
