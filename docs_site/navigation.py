"The sidebar from the files, and the page of all names; both for Quarto and for pandoc"
import ast, importlib
from pathlib import Path
import yaml
from nbdev.config import get_config
from nbdev.doclinks import patch_name
from .overview import STATIONS

SECTIONS = {'tutorials':'Tutorials', 'recipes':'Recipes', 'tasks':'Tasks', **{k:v[0] for k,v in STATIONS.items()}, 'core':'Core', '':'Command line and names', 'zh':'中文'}
NAMES = 'names.qmd'

def sidebar(nbs):
    "`website: sidebar: contents:`, one section a folder; a new notebook stands in it by itself"
    pages = sorted(str(p.relative_to(nbs)) for p in nbs.rglob('*.ipynb') if not any(o.startswith(('.','_')) for o in p.relative_to(nbs).parts))
    folder = lambda p: '' if (d := str(Path(p).parent))=='.' else d
    if lost := {folder(p) for p in pages}-set(SECTIONS): raise ValueError(f'nbs/{lost.pop()} has no name for the sidebar: give it one in SECTIONS of {__file__}')
    def first(d): return [dict(href=f'{d}/index.qmd', text='Overview')] if d else []
    parts = [dict(section=name, contents=[*first(d), *(p for p in pages if folder(p)==d and p!='index.ipynb')]) for d,name in SECTIONS.items()]
    return dict(website=dict(sidebar=dict(contents=['index.ipynb', *parts, NAMES])))

def write_sidebar(nbs):
    "Write `sidebar.yml`, which `_quarto.yml` names"
    (nbs/'sidebar.yml').write_text(yaml.safe_dump(sidebar(nbs), sort_keys=False))

def _summary(node):
    doc = ast.get_docstring(node)
    return doc.splitlines()[0].replace('|', r'\|') if doc else ''

def _summaries(lib, module):
    "Name -> first line of the docstring, of what a module defines"
    found = {}
    def walk(body, prefix=''):
        for o in body:
            if not isinstance(o, (ast.FunctionDef, ast.ClassDef)): continue
            name = patch_name(o)
            for n in (name if isinstance(name, list) else [name]): found[prefix+n] = _summary(o)
            if isinstance(o, ast.ClassDef): walk(o.body, f'{o.name}.')
    walk(ast.parse((lib/f"{module.replace('.', '/')}.py").read_text(encoding='utf8')).body)
    return found

def names_page():
    "Every public name that says what it is, its place and its module"
    cfg = get_config()
    index,base = importlib.import_module(f'{cfg.lib_name}._modidx').d['syms'],f'{cfg.doc_host}{cfg.doc_baseurl}/'
    rows = []
    for full,symbols in index.items():
        module = full.removeprefix(f'{cfg.lib_name}.')
        summaries = _summaries(cfg.lib_path, module)
        for name,(page,_) in symbols.items():
            short = name.removeprefix(f'{full}.')
            said = summaries.get(short)
            if any(o.startswith('_') for o in short.split('.')) or not said: continue
            rows.append((short.split('.')[-1].lower(), f'| [`{short}`]({base}{page}) | [{module}]({base}{page.split("#")[0]}) | {said} |'))
    table = '\n'.join(o for _,o in sorted(rows))
    return f'---\ntitle: All names\ndescription: Every public function, class and method, with its page\n---\n\n| Name | Module | What it is |\n|---|---|---|\n{table}\n'
