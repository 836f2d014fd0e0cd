"""Run tutorials and recipes whole, slow cells too, store what they show, and note in nbs/runs.json when, how long and with which versions

    python tools/tutorials.py nbs/recipes/00_few_pictures.ipynb …     # seconds are those of the processor, of the kernel and of what it started, on one thread"""
import base64, datetime, io, json, os, re, sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

root = Path(__file__).resolve().parents[1]
RUNS,LARGEST,WITH = root/'nbs'/'runs.json',60_000,('torch','fastai','transformers','timm')
PROBE = "import json, os, resource; print(json.dumps(dict(seconds=round(sum(os.times()[:4])), peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024))))"
MARK = '# On Colab and the like: the package is installed where it is missing'

def pages(): return sorted(o for d in ('tutorials', 'recipes') for o in (root/'nbs'/d).glob('*.ipynb'))

def install_cell():
    "The text of the cell that installs the package where it is missing"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf8')
    return f"""#| hide
{MARK}
from importlib.util import find_spec
if find_spec('sft_nb') is None: get_ipython().run_line_magic('pip', "install -q 'sft_nb[all] @ git+{cfg['DEFAULT']['repository']}'")"""

def with_install(text):
    "A notebook with that cell behind its title; None: it has no code"
    nb = json.loads(text)
    if not any(c['cell_type']=='code' for c in nb['cells']): return None
    cells = [c for c in nb['cells'] if MARK not in ''.join(c['source'])]
    new = dict(cell_type='code', execution_count=None, id='1057a11c', metadata={}, outputs=[], source=install_cell().splitlines(keepends=True))
    return json.dumps({**nb, 'cells':[cells[0], new, *cells[1:]]}, ensure_ascii=False, indent=1)+'\n'

def smaller(png):
    "A picture of at most 60 kB, in fewer colors where it takes more"
    from PIL import Image
    data = base64.b64decode(png)
    for colors in (256, 64, 32):
        if len(data)<=LARGEST: break
        out = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB').quantize(colors).save(out, 'PNG', optimize=True)
        data = out.getvalue()
    return base64.b64encode(data).decode()

def kept(output):
    "Whether an output belongs to the page: no progress bar, nothing of standard error"
    if output.output_type=='stream' and output.name=='stderr': return False
    return not re.search(r'\d+/\d+ \[|\d\w*/s\]', output.get('text', '')+str(output.get('data', {}).get('text/plain', '')))

def run(path):
    "Run a notebook in its folder, store its outputs; what it took"
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(path, 4)
    nb.cells.append(nbformat.v4.new_code_cell(PROBE))
    NotebookClient(nb, timeout=3600, startup_timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=str(path.parent)))).execute()
    took = json.loads(nb.cells.pop().outputs[-1].text)
    for c in (c for c in nb.cells if c.cell_type=='code'):
        c.outputs,c.execution_count,c.metadata = [o for o in c.outputs if kept(o)],None,{}
        for o in c.outputs:
            if 'execution_count' in o: o.execution_count = None
            if png := o.get('data', {}).get('image/png'): o.data['image/png'] = smaller(png)
    nb.metadata.pop('widgets', None)
    nb.metadata.pop('language_info', None)
    nbformat.write(nb, path)
    return took

if __name__=='__main__':
    os.environ |= dict(HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false', OMP_NUM_THREADS='1')
    for p in map(Path, sys.argv[1:]):
        took = run(p.resolve())
        runs = json.loads(RUNS.read_text()) if RUNS.exists() else {}
        runs[str(p.resolve().relative_to(root/'nbs'))] = {**took, 'date':str(datetime.date.today()), **{k:version(k).split('+')[0] for k in WITH}}
        RUNS.write_text(json.dumps(dict(sorted(runs.items())), indent=1)+'\n')
        print(p, took, flush=True)
