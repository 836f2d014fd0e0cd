"The Inspector at many rows: time until it is shown, time a page, memory; `python benchmarks/inspector.py` writes results/inspector.json and inspector.md"
import json, platform, sys, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd, psutil
from PIL import Image

here = Path(__file__).parent

def rows(folder, n, pictures=500, seed=0):
    "`n` rows over some pictures of 320 by 240 pixels"
    rng,names = np.random.default_rng(seed),[f'class {i}' for i in range(10)]
    for i in range(pictures): Image.fromarray(rng.integers(0, 256, (12,16,3)).astype(np.uint8)).resize((320,240)).save(folder/f'{i}.jpg')
    r = pd.DataFrame(dict(item=[f'{i:06}.jpg' for i in range(n)], image=[str(folder/f'{i%pictures}.jpg') for i in range(n)], target=rng.choice(names, n)))
    wrong = rng.random(n)<.1
    r['prediction'] = np.where(wrong, rng.choice(names, n), r.target)
    r['probability'] = rng.uniform(.2, 1, n)
    r['correct'] = r.target==r.prediction
    r['loss'] = -np.log(np.where(r.correct, r.probability, (1-r.probability)/9))
    r['place'] = rng.choice(['north','south','west'], n)
    return r,names

def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter()-start

def main(n=100_000):
    from sft_nb.data.task import get_task
    from sft_nb.evaluation.results import Evaluation
    from sft_nb.inspection.inspector import Inspector
    from sft_nb.inspection.cards import _thumb
    process,mb = psutil.Process(),2**20
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        r,names = rows(tmp, n)
        ev = Evaluation(r, get_task('image'), names)
        measured = timed(lambda: ev.metrics)
        made = []
        opened = timed(lambda: made.append(Inspector(ev, marks=tmp/'marks.jsonl')))
        look = made[0]
        before = process.memory_info().rss/mb
        turns = []
        for i in range(300):
            _thumb.cache_clear()
            turns.append(timed(look.turn))
            if i==99: middle = process.memory_info().rss/mb
        after = process.memory_info().rss/mb
        does = dict(confusion=lambda: setattr(look.tabs, 'selected_index', 1), confidence=lambda: setattr(look.tabs, 'selected_index', 2), thresholds=lambda: setattr(look.tabs, 'selected_index', 3),
                    by_class=lambda: look.show(target='class 3'), by_probability=lambda: look.show(probability=(.5,.6)), search_first=lambda: look.show(text='0999'),
                    search_again=lambda: look.show(text='0123'), order=lambda: setattr(look.order, 'value', 'disagreement'), next_row=lambda: look.step(1),
                    mark=lambda: look.mark('ambiguous'))
        times = {}
        for k,f in does.items():
            times[k] = timed(f)
            if k in ('by_class','by_probability','search_first','search_again'): look.clear_filters()
        out = dict(rows=n, metrics=measured, open=opened, page_median=float(np.median(turns)), page_p95=float(np.percentile(turns, 95)), page_most=max(turns), memory_open=before, memory_100_pages=middle,
                   memory_300_pages=after, html_kb=len(look.rows_pane.html)/1024, times=times, python=platform.python_version(), machine=platform.machine())
    (here/'results').mkdir(exist_ok=True)
    (here/'results'/'inspector.json').write_text(json.dumps(out, indent=1)+'\n')
    lines = [f'| {k} | {v:.3f} s |' for k,v in dict(open=opened, page_median=out['page_median'], page_95_percent=out['page_p95'], page_slowest=out['page_most'], **times).items()]
    (here/'inspector.md').write_text(f'''# The Inspector at {n:,} rows

`python benchmarks/inspector.py`: {n:,} rows of pictures (500 JPEG files of 320 by 240 pixels), 24 a page, the time in the kernel until what is drawn has been handed to the
widgets. Small pictures are not kept between pages here, so that every page reads its files. Memory is that of the process: {before:.0f} MB when the Inspector is open,
{middle:.0f} MB after 100 pages, {after:.0f} MB after 300. A page is {out['html_kb']:.0f} kB of HTML, whatever the number of rows.

| what | time |
|---|---|
''' + '\n'.join(lines)+'\n')
    print(json.dumps(out, indent=1))

if __name__=='__main__': main(*map(int, sys.argv[1:]))
