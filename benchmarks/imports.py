"""What it costs to import the package, beside what it stands on; and how soon a mistake is answered. Each in fresh processes, in turn.

    python benchmarks/imports.py --times 9       # writes results/imports.json and imports.md; a minute or two
"""
import argparse, json, os, statistics, subprocess, sys, time
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
here = Path(__file__).parent
FILE = here/'results'/'imports.json'
WAYS = {'from sft_nb.all import *': ['-c', 'from sft_nb.all import *'],
        'from fastai.vision.all import *; import transformers': ['-c', 'from fastai.vision.all import *; import transformers'],
        'sft_nb finetune image nowhere': ['-m', 'sft_nb', 'finetune', 'image', 'nowhere', '--out', 'out'],
        'sft_nb predict nowhere item': ['-m', 'sft_nb', 'predict', 'nowhere', 'item'],
        'sft_nb --help': ['-m', 'sft_nb', '--help']}

def once(args):
    "Wall-clock and CPU seconds and peak MB of one process"
    start = time.perf_counter()
    p = subprocess.Popen([sys.executable, '-W', 'ignore', *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _,_,used = os.wait4(p.pid, 0)
    return time.perf_counter()-start,used.ru_utime+used.ru_stime,used.ru_maxrss/1e3

def measure(times):
    for args in WAYS.values(): once(args) # files come into the memory of the machine
    found = {k:[] for k in WAYS}
    for _ in range(times):
        for k,args in WAYS.items(): found[k].append(once(args))
    return {k:[round(statistics.median(o), 3) for o in zip(*v)] for k,v in found.items()}

def page(found, times):
    ours,theirs = list(found.values())[:2]
    rows = '\n'.join(f'| `{k}` | {wall:.2f} | {cpu:.2f} | {peak:,.0f} |' for k,(wall,cpu,peak) in found.items())
    return f"""# Imports and first answers

`python benchmarks/imports.py` measures this: fresh processes, one of each kind in turn, {times} times, after one that does not count; medians.

| process | seconds | CPU seconds | peak memory, MB |
|---|---|---|---|
{rows}

The package beside what it stands on: {ours[0]/theirs[0]:.2f} × the time, {ours[1]/theirs[1]:.2f} × the CPU time, {ours[2]/theirs[2]:.2f} × the memory. The three commands are answered before torch is imported.
"""

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--times', type=int, default=9)
    a = p.parse_args()
    found = measure(a.times)
    FILE.write_text(json.dumps(dict(times=a.times, found=found), indent=1)+'\n')
    (here/'imports.md').write_text(page(found, a.times), encoding='utf8')
    print(page(found, a.times))

if __name__=='__main__': main()
