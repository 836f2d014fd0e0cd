"The package as it is built"
import json, os, re, shutil, subprocess, sys, venv, zipfile
from configparser import ConfigParser
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "A wheel, built from a copy of what git tracks, so that no build folder is left in the checkout"
    tmp = tmp_path_factory.mktemp('package')
    for o in ('sft_nb', 'setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'):
        if (root/o).is_dir(): shutil.copytree(root/o, tmp/'src'/o, ignore=shutil.ignore_patterns('__pycache__'))
        else: (tmp/'src').mkdir(exist_ok=True); shutil.copy(root/o, tmp/'src'/o)
    r = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(tmp), str(tmp/'src')], capture_output=True, text=True)
    assert not r.returncode, r.stderr
    return next(tmp.glob('*.whl'))

def test_wheel_holds_the_package_alone(wheel):
    assert wheel.stat().st_size < 1_000_000
    with zipfile.ZipFile(wheel) as z: names = z.namelist()
    assert {n.split('/')[0] for n in names if '.dist-info' not in n}=={'sft_nb'}
    assert not [n for n in names if n.endswith(('.ipynb', '.pyc')) or 'test' in n]
    modules = {p.relative_to(root).as_posix() for p in root.glob('sft_nb/**/*.py')}
    assert modules <= set(names)

def test_wheel_brings_the_command(wheel):
    with zipfile.ZipFile(wheel) as z: points = z.read(next(n for n in z.namelist() if n.endswith('entry_points.txt'))).decode()
    assert 'sft_nb = sft_nb.cli:main' in points and '[nbdev]' in points

def floors():
    "{name of the extra, `''` for the package itself: {distribution: its lowest version}}"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf8')
    return {k.removesuffix('requirements').removesuffix('_'): dict(r.split('>=') for r in v.split()) for k,v in cfg['DEFAULT'].items() if k.endswith('requirements')}

def test_lowest_constraints_are_the_floors():
    stated = {name:floor for o in floors().values() for name,floor in o.items()}
    assert dict(line.split('==') for line in (root/'constraints-lowest.txt').read_text().split())==stated

def test_extras_are_not_asked_for_by_the_package():
    "ONNX, the browser and the documentation have floors of their own, each in one extra, and `pip install sft_nb` brings none of them"
    core,*extras = (set(o) for o in floors().values())
    assert not core & set().union(*extras) and sum(map(len, extras))==len(set().union(*extras))
    assert set(floors()['export'])=={'onnx','onnxscript','onnxruntime'} and 'playwright' in floors()['dev'] and {'nbdev','pypandoc-binary','pagefind'}<=set(floors()['docs'])

def test_imports_need_no_extra():
    "Each module can be imported where what the extras bring is not installed"
    code = '''
import importlib, importlib.metadata as metadata, pathlib, sys
from importlib.machinery import PathFinder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical
core,extras = (set(map(canonical, o.split())) for o in sys.argv[2:])
todo = list(core) # others ask for some of the extras too, as fastai and transformers for pyyaml
while todo:
    try: needed = [Requirement(r) for r in metadata.requires(todo.pop()) or []]
    except metadata.PackageNotFoundError: continue
    new = {canonical(r.name) for r in needed if not r.marker or r.marker.evaluate({'extra':''})} - core
    core |= new; todo += new
modules = {m for m,ds in metadata.packages_distributions().items() if {canonical(d) for d in ds} & (extras-core)}
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, *args): return None if name in modules else super().find_spec(name, *args)
sys.meta_path[:] = [Finder if o is PathFinder else o for o in sys.meta_path]
package = pathlib.Path(sys.argv[1])
for p in sorted(package.rglob('*.py')):
    if p.stem not in ('_modidx', '__main__'): importlib.import_module('.'.join(p.relative_to(package.parent).with_suffix('').parts).removesuffix('.__init__'))
print(*modules)'''
    core,*extras = (' '.join(o) for o in floors().values())
    r = subprocess.run([sys.executable, '-c', code, str(root/'sft_nb'), core, ' '.join(extras)], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH':str(root)})
    assert not r.returncode and {'onnx','onnxruntime','playwright','nbdev','peft','datasets'}<=set(r.stdout.split()), r.stderr[-2000:]

# What a machine brings on which torch is given, with what each asks for; the libraries of CUDA are left out
GIVEN = {'torch==2.11.0': 'filelock typing-extensions>=4.10.0 setuptools<82 sympy>=1.13.3 networkx>=2.5.1 jinja2 fsspec>=0.8.5',
         'torchvision==0.26.0': 'numpy torch==2.11.0 pillow>=5.3.0,!=8.3.*',
         'transformers==5.17.0': 'huggingface-hub<2.0,>=1.5.0 numpy>=1.17 packaging>=20.0 pyyaml>=5.1 regex>=2025.10.22 tokenizers<0.24.0,>=0.23.1 typer safetensors>=0.8.0 tqdm>=4.60',
         'timm==1.0.31': 'torch torchvision pyyaml huggingface_hub safetensors'}
OLD = {'tqdm==4.60.0': ''} # below our floor: pip must say that it brings another

@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_given_torch_stays(wheel, tmp_path):
    "Needs an index. Where torch 2.11 and what stands on it are installed, pip brings the rest and leaves these alone"
    venv.create(tmp_path/'venv', with_pip=True)
    site = next((tmp_path/'venv').glob('lib/python*/site-packages'))
    for o,needs in {**GIVEN, **OLD}.items():
        name,version = o.split('==')
        info = site/f'{name}-{version}.dist-info'
        info.mkdir()
        lines = ['Metadata-Version: 2.1', f'Name: {name}', f'Version: {version}', *(f'Requires-Dist: {r}' for r in needs.split())]
        (info/'METADATA').write_text('\n'.join(lines)+'\n')
    command = [tmp_path/'venv'/'bin'/'python', '-m', 'pip', 'install', '-q', '--dry-run', '--report', tmp_path/'report.json', wheel]
    r = subprocess.run(command, capture_output=True, text=True)
    assert not r.returncode, r.stderr[-2000:]
    new = {o['metadata']['name'].lower().replace('_', '-') for o in json.loads((tmp_path/'report.json').read_text())['install']}
    assert {'sft-nb','fastai','accelerate','tqdm'}<=new and not new & {o.split('==')[0] for o in GIVEN}

@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_wheel_in_an_empty_environment(wheel, tmp_path):
    "Installed with nothing but what it asks for it runs the demonstration; what needs an extra names it"
    venv.create(tmp_path/'venv', with_pip=True)
    env = {**{k:v for k,v in os.environ.items() if k!='PYTHONPATH'}, 'SFT_NB_HOME':str(tmp_path/'home')}
    run = lambda *args: subprocess.run([str(o) for o in args], cwd=tmp_path, env=env, capture_output=True, text=True)
    r = run(tmp_path/'venv'/'bin'/'python', '-m', 'pip', 'install', '-q', '-c', root/'constraints.txt', wheel)
    assert not r.returncode, r.stderr[-2000:]
    sft = tmp_path/'venv'/'bin'/'sft_nb'
    r = run(sft, 'demo', '--out', 'out')
    assert not r.returncode and {'model.safetensors','metrics.json','report.html'}<={p.name for p in (tmp_path/'out').iterdir()}, r.stderr[-2000:]
    r = run(sft, 'demo', 'speech', '--out', 'speech')
    assert r.returncode==2 and "pip install" in r.stderr and 'speech' in r.stderr and len(r.stderr.strip().splitlines())==1 and not (tmp_path/'speech').exists()
