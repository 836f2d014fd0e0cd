"The package as it is built"
import os, re, shutil, subprocess, sys, venv, zipfile
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

def test_lowest_constraints_are_the_floors():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf8')
    floors = dict(r.split('>=') for k,v in cfg['DEFAULT'].items() if k.endswith('requirements') for r in v.split())
    assert dict(line.split('==') for line in (root/'constraints-lowest.txt').read_text().split())==floors

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
