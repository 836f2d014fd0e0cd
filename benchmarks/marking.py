"Marks by keyboard in JupyterLab: from the key to the frame in which the mark is seen, by the clock of the page; `python benchmarks/marking.py` writes results/marking.json and marking.md"
import json, os, sys, tempfile
from pathlib import Path
import numpy as np

here = Path(__file__).parent
sys.path.insert(0, str(here.parent/'tests'))
from browser import chromium, jupyterlab, Notebook

CELL = '''
import numpy as np, pandas as pd
from PIL import Image
from sft_nb.data.task import get_task
from sft_nb.evaluation.results import Evaluation
from sft_nb.inspection.inspector import Inspector
rng,n = np.random.default_rng(0),COUNT
for i in range(n): Image.fromarray(rng.integers(0, 256, (12,16,3)).astype(np.uint8)).resize((320,240)).save(f'{i}.jpg')
rows = pd.DataFrame(dict(item=[f'{i}.jpg' for i in range(n)], image=[f'{i}.jpg' for i in range(n)], target=rng.choice(['a','b','c'], n), prediction=rng.choice(['a','b','c'], n), probability=.9))
rows['correct'] = rows.target==rows.prediction
rows['loss'] = rng.random(n)
look = Inspector(Evaluation(rows, get_task('image'), ['a','b','c']), marks='marks.jsonl')
look
'''
PRESSED = "addEventListener('keydown', e => { if (e.key === 'x' || e.key === 'a') window.since = performance.now(); }, true)" # before the Inspector's own listener
WATCH = '''() => {
  window.took = [];
  new MutationObserver(all => {
    if (!window.since || !all.some(o => o.target.dataset?.badge)) return;
    const t = window.since; window.since = null;
    requestAnimationFrame(() => window.took.push(performance.now()-t));
  }).observe(document.querySelector('.sft-rows'), {childList: true, subtree: true});
}'''
OPEN = '() => document.querySelector(".sft h3 [data-badge]").dataset.badge'

def main(n=200):
    with tempfile.TemporaryDirectory() as tmp:
        folder,home = Path(tmp)/'notebooks',Path(tmp)/'home'
        for o in (folder, home): o.mkdir()
        with jupyterlab(folder, home) as address, chromium(Path(tmp)/'browser') as b:
            b.add_init_script(PRESSED)
            nb = Notebook((address, folder), b, 'marks', CELL.replace('COUNT', str(n)))
            nb.cards.first.focus()
            nb.page.keyboard.press('Enter')
            nb.page.evaluate(WATCH)
            for i in range(n):
                nb.page.keyboard.press('xa'[i%2])
                nb.page.wait_for_function('n => window.took.length === n', arg=i+1)
                if i==n-1: break
                at = nb.page.evaluate(OPEN)
                nb.page.keyboard.press('ArrowRight')
                nb.page.wait_for_function(f'at => ({OPEN})() !== at', arg=at)
            took,lines = np.array(nb.page.evaluate('window.took')),len((folder/'marks.jsonl').read_text().splitlines())
    if lines!=n: sys.exit(f'{lines} marks in the file, expected {n}')
    out = dict(marks=n, median=float(np.median(took)), p95=float(np.percentile(took, 95)), most=float(took.max()), over_100=int((took>100).sum()), load=os.getloadavg()[0], cpus=os.cpu_count())
    (here/'results').mkdir(exist_ok=True)
    (here/'results'/'marking.json').write_text(json.dumps(out, indent=1)+'\n')
    (here/'marking.md').write_text(f'''# Marks by keyboard

`python benchmarks/marking.py`: {n} rows of pictures, 24 a page, in JupyterLab in Chromium. Each row is marked by a key; the time is that from the key to the frame in which the mark is seen, by the clock of the page.
In it the key goes to the kernel, the mark is written to its file for good, and the badge comes back. The machine has {out['cpus']} cores, and its load was {out['load']:.1f} at the end.

| marks | median | 95 % | slowest | over 100 ms |
|---|---|---|---|---|
| {n} | {out['median']:.0f} ms | {out['p95']:.0f} ms | {out['most']:.0f} ms | {out['over_100']} |
''')
    print(json.dumps(out))

if __name__=='__main__': main(*map(int, sys.argv[1:]))
