"The project's arrangement: names, late imports, the version, docments"
import ast, builtins, dis, importlib, importlib.metadata, inspect, json, pkgutil, re, subprocess, sys, tomllib
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import unquote
import pypandoc, pytest
import sft_nb
from test_house import IMPORTS, folder

root = Path(__file__).resolve().parents[1]
heavy = 'torch fastai transformers timm pandas matplotlib sklearn'.split()
package = sorted(root.glob('sft_nb/**/*.py'))
modules = [p for p in package if not p.name.startswith('_')]

def python(code):
    "What `code` prints in a fresh process, as JSON"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert not r.returncode, r.stderr
    return json.loads(r.stdout.splitlines()[-1])

@pytest.mark.parametrize('code', [
    'import sft_nb', 'import sft_nb.cli', 'from sft_nb.core.basics import *', 'from sft_nb.checkpoints.assets import *',
    'import sft_nb.cli, contextlib, io\nwith contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): sft_nb.cli.main(["--help"])'])
def test_imports_are_late(code):
    assert python(f'{code}\nimport json, sys; print(json.dumps([o for o in {heavy} if o in sys.modules]))') == []

@pytest.mark.parametrize('name', ['all', 'evaluation.evaluate', 'training.learner', 'inspection.inspector', 'data.images', 'core.fit_metrics', 'models.seq2seq'])
def test_the_first_line_says_nothing(name):
    "As a new user runs it, and as a notebook does; a warning of ours, or of another kind, would still be heard"
    code = f'import warnings\nfrom sft_nb.{name} import *\nwarnings.warn("`torch.jit.script` is deprecated. Who says so?", FutureWarning)'
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert not r.returncode and r.stderr.count('Warning')==1 and 'Who says so?' in r.stderr, r.stderr

def test_layers_of_fastai_are_loaded_without_a_warning():
    "Nearly every part of fastai loads its layers, where torch warns; `core.losses` does it first, imported by the module or by its folder"
    def places(path, wanted): return [o.lineno for o in ast.parse(path.read_text(encoding='utf8')).body if isinstance(o, ast.ImportFrom) and wanted(o)]
    def layers(o): return (o.module or '').startswith('fastai.') and o.module!='fastai.torch_core'
    def losses(o): return o.level and (o.module or 'core')=='core' and 'losses' in [a.name for a in o.names]
    early = {p.parent for p in package if p.name=='__init__.py' and places(p, losses)}
    loud = [p.stem for p in modules if p.parent not in early and p!=root/'sft_nb/core/losses.py' and min(places(p, layers), default=9e9)<min(places(p, losses), default=9e9)]
    assert loud==[]

star = '''
import json
mine, theirs = {}, {}
exec('from sft_nb.all import *', mine)
exec('from fastai.AREA.all import *', theirs)
both = [dict(), dict()]
for ns,order in zip(both, (['sft_nb', 'fastai.AREA'], ['fastai.AREA', 'sft_nb'])):
    for o in order: exec(f'from {o}.all import *', ns)
shared = [k for k in mine if k in theirs and not k.startswith('__')]
print(json.dumps([k for k in shared if not (both[0][k] is both[1][k] is mine[k])]))
'''

@pytest.mark.parametrize('area', ['vision', 'text', 'tabular'])
def test_no_name_of_fastai_is_taken(area):
    assert python(star.replace('AREA', area)) == []

# Names that `sft_nb.all` had and gave up, since a user would bind them by accident, or since they are spelled `color_histogram` and `neighbors` now
GIVEN_UP = set('targets drawn joined opened taught shifted interval cooled normalised fuse fetch deletion_test colour_histogram neighbours'.split())
# Modules whose names are for the rest of the package, or for those who look one up
PLUMBING = {'cli', 'all', 'core.basics', 'core.untrusted', 'data.lazy', 'inspection.cards', 'inspection.report', 'inspection.selection', 'tasks.toys', 'tasks.demo_data'}

def test_public_names_stay():
    from sft_nb import all as face
    before = set((root/'tests'/'fixtures'/'public_names.txt').read_text(encoding='utf8').split())
    assert len(before)==273 and GIVEN_UP<=before
    assert before-set(face.__all__)==GIVEN_UP

def test_all_has_every_public_name():
    from sft_nb import all as face
    names = [m.name.removeprefix('sft_nb.') for m in pkgutil.walk_packages(sft_nb.__path__, 'sft_nb.') if not m.ispkg and not m.name.split('.')[-1].startswith('_')]
    assert len(names)>60
    seams = {(to, o) for m,found in IMPORTS.items() for to,o,_ in found if folder(m)!=folder(to)}
    missing = [f'{m}.{o}' for m in names if m not in PLUMBING for o in importlib.import_module(f'sft_nb.{m}').__all__
               if not hasattr(face, o) and (m, o) not in seams and o not in GIVEN_UP|{'normalized'}]
    assert not missing, f'add to nbs/01_all.ipynb, or begin with an underscore what no other folder imports: {missing}'

def test_public_face():
    from sft_nb import all as face
    names = '''load_data sft_learner SFTLearner layer_table freeze_to evaluate save_predictor load_predictor Predictor Evaluation list_checkpoints
               all_tasks Task register SftError'''
    assert [o for o in names.split() if o not in face.__all__] == []

def test_tasks_are_known_without_torch():
    code = f"""
import json, sys
from sft_nb.data.task import all_tasks
print(json.dumps([sorted(all_tasks()), [o for o in {heavy} if o in sys.modules]]))"""
    assert python(code)==[['audio','chat','image','image_text','speech','text','tokens','translation'], []]

mistakes = [('finetune image nowhere --out OUT', 'nowhere is missing'), ('finetune imagee . --out OUT', "no task 'imagee'"), ('finetune image EMPTY --out OUT', 'EMPTY'),
            ('finetune text TABLE --input txt --out OUT', "no column 'txt'"), ('finetune text TABLE --option sise=3 --out OUT', "no option 'sise'"),
            ('finetune image TABLE --out TABLE/x', 'cannot be made'), ('predict nowhere x', 'no folder nowhere'), ('evaluate nowhere TABLE', 'no folder nowhere'),
            ('export nowhere --out x.onnx', 'no folder nowhere')]

@pytest.mark.parametrize('line,said', mistakes, ids=[o for o,_ in mistakes])
def test_mistakes_are_said_before_torch_is_imported(line, said, tmp_path):
    (tmp_path/'EMPTY').mkdir()
    (tmp_path/'TABLE.csv').write_text('text,label\na,x\nb,y\n')
    argv = line.replace('TABLE', str(tmp_path/'TABLE.csv')).replace('EMPTY', str(tmp_path/'EMPTY')).replace('OUT', str(tmp_path/'out')).split()
    code = f"""
import contextlib, io, json, sys
from sft_nb.cli import main
said = io.StringIO()
with contextlib.redirect_stderr(said): code = main({argv!r})
print(json.dumps([code, said.getvalue(), [o for o in {heavy} if o in sys.modules and o!='pandas']]))"""
    code,text,loaded = python(code)
    assert code==2 and said.replace('EMPTY', str(tmp_path/'EMPTY')) in text and text.count('\n')==1 and loaded==[], (text, loaded)

methods = """
import importlib, inspect, json
import MODULE as m
def found(): return {n:sorted(vars(o)) for n,o in vars(m).items() if inspect.isclass(o) and o.__module__=='MODULE'}
before = found()
import sft_nb.all, sft_nb.cli, pkgutil
for o in pkgutil.walk_packages(sft_nb.__path__, 'sft_nb.'):
    if not o.name.endswith('__main__'): importlib.import_module(o.name)
print(json.dumps([k for k,v in found().items() if v!=before[k]]))
"""

@pytest.mark.parametrize('module', ['training.learner', 'training.distributed', 'evaluation.results', 'inspection.attributions', 'inspection.inspector', 'data.corrections', 'models.model'])
def test_classes_are_whole_whatever_was_imported(module):
    assert python(methods.replace('MODULE', f'sft_nb.{module}')) == []

def test_star_of_a_module_gives_the_learner_all_its_methods():
    code = """
import json
from sft_nb.training.learner import *
print(json.dumps([SFTLearner.fine_tune.__module__, [o for o in ('fit_head','gradual_unfreeze','fit_slanted') if o not in vars(SFTLearner)]]))"""
    assert python(code)==['sft_nb.training.schedule', []]

def test_what_is_said_goes_through_say():
    "`say` speaks in the first process alone; the command line says why it ended in any"
    found = {f'{p.stem}.{f.name}' for p in package for f in ast.walk(ast.parse(p.read_text(encoding='utf8'))) if isinstance(f, ast.FunctionDef)
             for o in ast.walk(f) if isinstance(o, ast.Call) and getattr(o.func, 'id', '')=='print' and any(k.arg=='file' for k in o.keywords)}
    assert found=={'basics.say','basics._lines','cli.main'}

def test_nothing_is_patched_onto_fastai():
    code = '''
import json
import fastai.vision.all, fastai.text.all, fastai.tabular.all
from fastai.learner import Learner
before = set(vars(Learner))
import sft_nb.all
print(json.dumps(sorted(set(vars(Learner))-before)))'''
    assert python(code) == []

def test_version_stands_in_one_place():
    version = sft_nb.__version__
    assert re.fullmatch(r'\d+\.\d+\.\d+(\.\w+)?', version)
    assert 'version' in tomllib.loads((root/'pyproject.toml').read_text())['project']['dynamic']
    sources = [root/'settings.ini', root/'setup.py', *package]
    holders = [str(p.relative_to(root)) for p in sources if re.search(rf'version\w*\s*=\s*["\']?{re.escape(version)}', p.read_text(encoding='utf8'))]
    assert holders == ['sft_nb/__init__.py']

def test_requirements_stand_in_settings():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf8')
    norm = lambda s: re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', s)[0]).lower()
    stated = {norm(o) for o in cfg['DEFAULT']['requirements'].split()}
    installed = {norm(o) for o in importlib.metadata.requires('sft_nb') if 'extra ==' not in o}
    assert stated == installed

def documented_above():
    "Class -> names of the methods that a class above it documents: kinds and tasks write them out without saying again what each argument means"
    import sft_nb.tasks
    from sft_nb.data.kinds import InputKind, TargetKind
    from sft_nb.data.task import Task
    def below(c): return {c, *(o for s in c.__subclasses__() for o in below(s))}
    return {c.__name__:{n for up in c.__mro__[1:] for n,f in vars(up).items() if getattr(f, '__doc__', None)} for base in (InputKind, TargetKind, Task) for c in below(base)}

def overrides(f, owner, above):
    "Whether a function is a method that a class above its own documents; `owner` is that class where the method stands in it"
    note = f.args.args[0].annotation if f.args.args else None
    owner = owner or (note.id if isinstance(note, ast.Name) else None)
    return f.name in above.get(owner, ())

ABOVE = documented_above()

def public_functions(path):
    "Public functions and methods of a module, from its source; without methods that a class above documents"
    def walk(body, prefix=''):
        for o in body:
            if isinstance(o, ast.FunctionDef) and overrides(o, prefix.rstrip('.') or None, ABOVE): continue
            if isinstance(o, ast.ClassDef) and not o.name.startswith('_'): yield from walk(o.body, f'{prefix}{o.name}.')
            if isinstance(o, ast.FunctionDef) and (not o.name.startswith('_') or o.name=='__init__'): yield f'{prefix}{o.name}', o
    return walk(ast.parse(path.read_text(encoding='utf8')).body)

def parameters(path):
    "(module.function, parameter, whether it has a comment on its line) for each public parameter"
    lines = path.read_text(encoding='utf8').splitlines()
    for name,f in public_functions(path):
        a = f.args
        for p in [*a.posonlyargs, *a.args, *a.kwonlyargs]:
            if p.arg in ('self', 'cls'): continue
            yield f'{path.stem}.{name}', p.arg, '#' in lines[p.end_lineno-1][p.end_col_offset:]

def test_parameters_have_docments():
    found = [o for p in modules for o in parameters(p)]
    bare = [f'{f}({p})' for f,p,ok in found if not ok]
    assert len(bare) <= .1*len(found), f'{len(bare)} of {len(found)} public parameters have no comment: {bare}'

def _globals_read(code):
    "Names that a piece of code, or one inside it, takes from its module"
    own = {i.argval for i in dis.get_instructions(code) if i.opname=='STORE_NAME'}
    yield from (i.argval for i in dis.get_instructions(code) if i.opname=='LOAD_GLOBAL' or i.opname=='LOAD_NAME' and i.argval not in own)
    for o in code.co_consts:
        if hasattr(o, 'co_code'): yield from _globals_read(o)

@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_every_name_is_there(path):
    "Star imports hide from a linter that a name is nowhere"
    module = importlib.import_module('.'.join(path.relative_to(root).with_suffix('').parts))
    unknown = {o for o in _globals_read(compile(path.read_text(encoding='utf8'), path, 'exec')) if not hasattr(module, o) and not hasattr(builtins, o)}
    assert not unknown-{'__module__','__qualname__','__annotations__','__name__'}, unknown

def test_public_names_have_docstrings():
    tops = [(p.stem, o) for p in modules for o in ast.parse(p.read_text(encoding='utf8')).body if isinstance(o, (ast.FunctionDef, ast.ClassDef))]
    bare = [f'{m}.{o.name}' for m,o in tops if not o.name.startswith('_') and not ast.get_docstring(o) and not (isinstance(o, ast.FunctionDef) and overrides(o, None, ABOVE))]
    assert not bare, bare

@pytest.mark.parametrize('path', sorted(root.glob('nbs/**/*.ipynb')), ids=lambda p: p.stem)
def test_notebook_is_small_and_whole(path):
    nb = json.loads(path.read_text(encoding='utf8'))
    outputs = sum(len(json.dumps(c.get('outputs', []))) for c in nb['cells'])
    assert outputs < (500_000 if {'tutorials', 'recipes', 'zh'}&set(path.parts) else 50_000), f'{outputs:,} bytes of stored outputs'
    errors = [c['source'] for c in nb['cells'] for o in c.get('outputs', []) if o['output_type']=='error']
    assert not errors
    text = json.dumps([c.get('outputs', []) for c in nb['cells']])
    assert not re.search(r'site-packages|/home/\w|/root/', text), 'a stored output names a path of the machine it ran on'
    assert 'skip_exec' not in json.dumps(nb['cells'][:2])

def test_readme_shows_what_exists():
    from sft_nb import all as face
    text = (root/'README.md').read_text(encoding='utf8')
    blocks = re.findall(r'``` ?python\n(.*?)```', text, re.S)
    assert blocks
    for call in [o for b in blocks for o in ast.walk(ast.parse(b)) if isinstance(o, ast.Call) and isinstance(o.func, ast.Name) and hasattr(face, o.func.id)]:
        f = getattr(face, call.func.id)
        if inspect.isfunction(f): inspect.signature(f).bind(*call.args, **{k.arg: k.value for k in call.keywords})

def commands(name):
    "Fenced blocks of a README without their comments, and the commands in its text"
    text = (root/name).read_text(encoding='utf8')
    blocks = [re.sub(r'\s*#.*', '', b).strip() for b in re.findall(r'``` ?(?:sh|python)\n(.*?)```', text, re.S)]
    return blocks, {o for o in re.findall(r'`((?:make|sft_nb|pip) [^`]+)`', re.sub(r'```.*?```', '', text, flags=re.S))}

def test_readmes_agree_on_commands():
    (blocks,said),(zh_blocks,zh_said) = commands('README.md'),commands('README.zh.md')
    assert zh_blocks==blocks
    assert zh_said <= said

def _measured(name):
    "Rows of the table of the README that shows what was measured, without their names"
    rows = [[c.strip() for c in l.strip().strip('|').split('|')] for l in (root/name).read_text(encoding='utf8').splitlines() if l.startswith('|')]
    return [r[1:] for r in rows if len(r)==5 and re.fullmatch(r'0\.\d{3}', r[1])]

@pytest.mark.parametrize('name', ['README.md', 'README.zh.md'])
def test_readme_shows_figures_that_were_measured(name):
    shown = _measured(name)
    assert 3<=len(shown)<=6 and shown==_measured('benchmarks/defaults.md')

def tables(text):
    "The tables of a Markdown text, each as rows of cells: head, rule, body"
    text = re.sub(r'```.*?```', '', text, flags=re.S)
    return [[[c.strip() for c in re.split(r'(?<!\\)\|', l.strip())[1:-1]] for l in o.strip().splitlines()] for o in re.findall(r'(?:^\|.*\n?)+', text, re.M)]

@pytest.mark.parametrize('name', ['README.md', 'README.zh.md', 'CONTRIBUTING.md', 'benchmarks/README.md', 'nbs/index.ipynb'])
def test_tables_have_one_width(name):
    text = (root/name).read_text(encoding='utf8')
    if name.endswith('.ipynb'): text = '\n\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type']=='markdown')
    for head,rule,*rows in tables(text):
        assert all(re.fullmatch(':?-+:?', o) for o in rule) and {len(o) for o in (head,rule,*rows)}=={len(head)}, f'a table with the head {head}'
        assert all(any(column) for column in zip(head, *rows)), f'an empty column in the table with the head {head}'
    assert tables(text) or not name.startswith('README')

@pytest.mark.parametrize('name', ['README.md', 'README.zh.md'])
def test_readme_as_it_is_rendered(name):
    "By the rules of GitHub's Markdown: tables are tables, code is code, pictures and links lead to files of the repository"
    html = pypandoc.convert_text((root/name).read_text(encoding='utf8'), 'html', format='gfm')
    assert html.count('<table>')==1 and html.count('<h1')==1 and html.count('class="sourceCode')>=3
    assert not re.search(r'\|\s*-{3,}|```|\]\(', re.sub(r'<pre.*?</pre>', '', html, flags=re.S)), 'Markdown that was not understood'
    places = re.findall(r'(?:href|src)="([^"#]+)[^"]*"', html)
    assert len(places)>20 and not [o for o in places if '://' not in o and not (root/unquote(o)).exists()]
    assert re.search(r'<img[^>]+alt="[^"]{20,}"', html, re.S)

@pytest.mark.slow
@pytest.mark.parametrize('name', ['README.md', 'README.zh.md'])
def test_python_of_the_readme_runs_as_pasted(name, tmp_path):
    block = re.search(r'``` ?python\n(.*?)```', (root/name).read_text(encoding='utf8'), re.S)[1]
    assert len(block.strip().splitlines())<=12
    done = subprocess.run([sys.executable, '-c', block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode==0, done.stderr
    assert re.search(r'accuracy\s+0\.9', done.stdout) and (tmp_path/'digits-model'/'sft.json').exists()

@pytest.mark.parametrize('name', ['README.md', 'README.zh.md', 'CONTRIBUTING.md', 'benchmarks/README.md'])
def test_links_of_readme_exist(name):
    text = re.sub(r'```.*?```', '', (root/name).read_text(encoding='utf8'), flags=re.S)
    links = [o for o in re.findall(r'\]\(([^)\s]+)\)', text) if '://' not in o and not o.startswith(('#','mailto:'))]
    gone = [o for o in links if not ((root/name).parent/o.split('#')[0]).exists()]
    assert not gone, gone
