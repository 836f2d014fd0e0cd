"The house: which folder may import which, read from the source; names that stay in their folder; classes that are whole whatever was imported"
import ast, importlib, json, re, subprocess, sys, tomllib
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
# Floors, lowest first; folders on one floor do not import each other
FLOORS = [{'core'}, {'checkpoints'}, {'data'}, {'models','evaluation'}, {'training','inspection','deployment'}, {'diagnosis'}, {'tasks'}, {'cli'}, {'all'}]
# The only imports against that order, each inside a function
UPWARD = {('data.task', 'tasks'), ('evaluation.results', 'diagnosis.baselines'), ('evaluation.results', 'inspection.page')}
# Folders that know nothing of each other although the floors would allow it
APART = {('training','evaluation'), ('inspection','models'), ('deployment','models')}

def name(path): return '.'.join(path.relative_to(root/'sft_nb').with_suffix('').parts).removesuffix('.__init__')
def folder(module): return module.partition('.')[0]
def floor(module): return next(i for i,o in enumerate(FLOORS) if folder(module) in o)

MODULES = {name(p):p for p in sorted((root/'sft_nb').glob('**/*.py')) if p.name!='_modidx.py' and p.stem!='__main__' and p!=root/'sft_nb/__init__.py'}

def imports(module, path):
    "(module of the package, name or None, whether it stands inside a function) of each import, late ones by name too"
    tree,package = ast.parse(path.read_text(encoding='utf8')),path.stem=='__init__'
    inside = {id(o) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for o in ast.walk(f)}
    for o in ast.walk(tree):
        if isinstance(o, ast.ImportFrom):
            here = f'sft_nb.{module}'.split('.')
            base = here[:len(here)-o.level+package] if o.level else []
            full = '.'.join([*base, *([o.module] if o.module else [])])
            if full!='sft_nb' and not full.startswith('sft_nb.'): continue
            for a in o.names:
                whole = f'{full}.{a.name}'.removeprefix('sft_nb.')
                yield (whole, None, id(o) in inside) if whole in MODULES else (full.removeprefix('sft_nb').removeprefix('.'), a.name, id(o) in inside)
        elif isinstance(o, ast.Import):
            for a in o.names:
                if a.name.startswith('sft_nb.'): yield a.name.removeprefix('sft_nb.'),None,id(o) in inside
        elif isinstance(o, ast.Constant) and isinstance(o.value, str):
            late = re.fullmatch(r'(?:sft_nb\.)?((?:\w+\.)?\w+)(?::(\w+))?', o.value)
            if late and late[1] in MODULES and (late[2] or o.value.startswith('sft_nb.')): yield late[1],late[2],True

IMPORTS = {m:[o for o in imports(m, p) if o[0]] for m,p in MODULES.items()}

def test_no_folder_looks_upward():
    found = {(m, to) for m,os in IMPORTS.items() for to,_,_ in os if folder(m)!=folder(to) and floor(to)>=floor(m)}
    assert found-UPWARD==set()
    assert UPWARD-found==set(), 'an exception that nobody needs any more'
    assert all(late for m,os in IMPORTS.items() for to,_,late in os if (m,to) in UPWARD)

def test_some_folders_know_nothing_of_each_other():
    assert [(m, to) for m,os in IMPORTS.items() for to,_,_ in os if {(folder(m),folder(to)), (folder(to),folder(m))} & APART] == []

def circle(graph):
    "The modules of a circle, or None"
    done,path = set(),[]
    def visit(m):
        if m in path: return path[path.index(m):]
        if m in done: return
        path.append(m)
        for to in sorted(graph.get(m, ())):
            if found := visit(to): return found
        done.add(path.pop())
    return next((o for m in sorted(graph) if (o := visit(m))), None)

def test_no_circle():
    assert circle({'a':{'b'}, 'b':{'c'}, 'c':{'a'}})==['a','b','c']
    graph = {m:{to for to,_,_ in os if (m,to) not in UPWARD and to!=m} for m,os in IMPORTS.items() if not MODULES[m].stem=='__init__'}
    assert circle(graph) is None

def test_no_star_import():
    assert [m for m,p in MODULES.items() for o in ast.walk(ast.parse(p.read_text(encoding='utf8'))) if isinstance(o, ast.ImportFrom) and o.names[0].name=='*'] == []

def test_private_names_stay_in_their_folder():
    assert [(m, to, n) for m,os in IMPORTS.items() for to,n,_ in os if n and n.startswith('_') and not n.startswith('__') and folder(m)!=folder(to)] == []

def private_attributes(path):
    "(names that are set or defined as attributes, names that are read of anything but self and cls)"
    tree = ast.parse(path.read_text(encoding='utf8'))
    own = lambda o: isinstance(o, str) and o.startswith('_') and not o.startswith('__')
    made = {o.attr for o in ast.walk(tree) if isinstance(o, ast.Attribute) and isinstance(o.ctx, ast.Store) and own(o.attr)}
    for c in ast.walk(tree):
        if isinstance(c, ast.ClassDef): made |= {o.name for o in c.body if isinstance(o, ast.FunctionDef) and own(o.name)}
        if isinstance(c, ast.FunctionDef) and any('patch' in ast.unparse(o) for o in c.decorator_list) and own(c.name): made.add(c.name)
    read = {o.attr for o in ast.walk(tree) if isinstance(o, ast.Attribute) and isinstance(o.ctx, ast.Load) and own(o.attr) and ast.unparse(o.value) not in ('self','cls')}
    return made,read

def test_private_attributes_stay_in_their_folder():
    found = {m:private_attributes(p) for m,p in MODULES.items()}
    made = {}
    for m,(names,_) in found.items():
        for n in names: made.setdefault(n, set()).add(folder(m))
    assert '_settle' in made
    assert [(m, n) for m,(_,read) in found.items() for n in read if n in made and folder(m) not in made[n]] == []

def methods_from_elsewhere():
    "(module, class, module of the class) of each method that is given to a class of another module"
    trees = {m:ast.parse(p.read_text(encoding='utf8')).body for m,p in MODULES.items()}
    home = {o.name:m for m,body in trees.items() for o in body if isinstance(o, ast.ClassDef)}
    for m,body in trees.items():
        for o in body:
            given = []
            if isinstance(o, ast.FunctionDef) and any('patch' in ast.unparse(d) for d in o.decorator_list): given = [ast.unparse(o.args.args[0].annotation)]
            if isinstance(o, ast.Assign):
                targets = [e for t in o.targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
                given = [t.value.id for t in targets if isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name)]
            yield from ((m, c, home[c]) for c in given if home.get(c, m)!=m)

def test_methods_come_with_the_class():
    "A module that gives methods to a class of its folder is imported by the folder itself"
    found = set(methods_from_elsewhere())
    assert ('training.schedule', 'SFTLearner', 'training.learner') in found
    assert [o for o in found if folder(o[0])!=folder(o[2]) or o[0] not in {to for to,_,_ in IMPORTS[folder(o[0])]}] == []

def test_no_list_of_names_beside_the_definitions():
    assert [m for m,p in MODULES.items() if re.search(r'^_all_\b', p.read_text(encoding='utf8'), re.M)] == []
    assert [str(p) for p in root.glob('nbs/**/*.ipynb') if '"_all_ =' in p.read_text(encoding='utf8')] == []

def test_names_are_mostly_words():
    "At most 30 % of the names that code binds have one letter, as in fastai; `_` is not counted"
    nodes = [node for path in MODULES.values() for node in ast.walk(ast.parse(path.read_text(encoding='utf8')))]
    bound = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id!='_']
    assert sum(len(word)==1 for word in bound)/len(bound)<=.3

def test_undefined_names_are_looked_for():
    lint = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf8'))['tool']['ruff']['lint']
    off = [*lint['ignore'], *(o for k,os in lint['per-file-ignores'].items() if k.startswith('sft_nb') for o in os)]
    assert 'F' in lint['select'] and not {'F','F403','F405','F82','F821','F822'} & set(off)

def test_git_ignores_no_source():
    paths = [p.relative_to(root).as_posix() for o in ('sft_nb','nbs','tests','tools','docs_site','benchmarks') for p in (root/o).rglob('*')
             if p.is_file() and not {'__pycache__','.ipynb_checkpoints'} & set(p.parts) and p.name not in ('nbdev.yml','sidebar.yml','.last_checked','.gitconfig')]
    if not (root/'.git').exists(): pytest.fail('this test needs a checkout of git')
    r = subprocess.run(['git', 'check-ignore', '--no-index', '--stdin'], input='\n'.join(paths), capture_output=True, text=True, cwd=root)
    assert r.returncode==1 and not r.stdout, r.stdout
