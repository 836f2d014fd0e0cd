"The Chinese pages get the outputs of the English cells that they show again: `python tools/chinese.py`, after an English page was run anew"
import json, sys
from pathlib import Path

nbs = Path(__file__).resolve().parents[1]/'nbs'
SOURCES = {'00_quick_start':['tutorials/00_quick_start'], '01_what_is_sft':['tutorials/02_what_is_sft'],
           '02_recipes':sorted(p.relative_to(nbs).with_suffix('').as_posix() for p in (nbs/'recipes').glob('*.ipynb'))}
NOT_RUN = '#| eval: false\n'

def notebook(name): return json.loads((nbs/f'{name}.ipynb').read_text(encoding='utf8'))
def text(cell): return ''.join(cell['source'])
def english(name): return {text(c):c['outputs'] for s in SOURCES[name] for c in notebook(s)['cells'] if c['cell_type']=='code'}

def renewed(name):
    "The Chinese notebook `name` with the outputs of its sources"
    nb,outputs = notebook(f'zh/{name}'),english(name)
    for c in nb['cells']:
        if c['cell_type']!='code': continue
        source = text(c).removeprefix(NOT_RUN)
        if source not in outputs: sys.exit(f'nbs/zh/{name}.ipynb shows code that {" and ".join(SOURCES[name][:3])} do not have:\n{source}')
        c['outputs'] = outputs[source]
    return json.dumps(nb, ensure_ascii=False, indent=1)+'\n'

if __name__=='__main__':
    for name in SOURCES: (nbs/'zh'/f'{name}.ipynb').write_text(renewed(name), encoding='utf8')
