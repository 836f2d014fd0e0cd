#!/usr/bin/env python3
"""Everything that must hold before a change is merged: `make test`, with the time of each stage, within 40 minutes.

Needs Python 3.11 with venv, make and pip's access to an index; nothing of the project need be installed. The environment is kept in the
user's cache folder, and made anew where it is missing, unfinished or of other requirements; one that was not used for three hours is removed then."""
import fcntl, hashlib, os, platform, shutil, signal, subprocess, sys, time, tomllib
from pathlib import Path

limit = 40*60
root = Path(__file__).resolve().parents[1]
os.chdir(root)

def env_key():
    "Hash of what decides about the environment"
    project = {k:v for k,v in tomllib.loads(Path('pyproject.toml').read_text()).items() if k!='tool'}
    parts = [platform.python_version(), sys.executable, repr(project), *(Path(o).read_text() for o in ('settings.ini', 'setup.py', 'constraints.txt'))]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]

def run(cmd, deadline, **kw):
    "Run `cmd`, killed with all its children at `deadline`"
    p = subprocess.Popen(cmd, start_new_session=True, **kw)
    try: return p.wait(max(1, deadline-time.time()))
    except BaseException as e:
        os.killpg(p.pid, signal.SIGKILL)
        if isinstance(e, subprocess.TimeoutExpired): sys.exit(f'== stopped: more than {limit//60} minutes')
        raise

def environment(home, deadline):
    "The folder of a finished environment; another process that makes it is waited for"
    venv,done = home/f'venv-{env_key()}','.complete'
    home.mkdir(parents=True, exist_ok=True)
    with open(home/'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (venv/done).exists():
            shutil.rmtree(venv, ignore_errors=True)
            if run(['make', f'{venv}/.installed-dev', f'VENV={venv}', f'PYTHON={sys.executable}'], deadline): sys.exit('== the installation failed')
        (venv/done).touch()
        for o in home.glob('venv-*'):
            if o!=venv and (not (o/done).exists() or (o/done).stat().st_mtime < time.time()-3*3600): shutil.rmtree(o, ignore_errors=True)
    for o in ('.installed', '.installed-dev'): (venv/o).touch()
    return venv

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
start = time.time()
home = Path(os.environ.get('SFT_NB_CI_HOME') or Path(os.environ.get('XDG_CACHE_HOME') or Path.home()/'.cache')/'sft_nb-ci')
venv = environment(home, start+limit)
print(f'== environment: {time.time()-start:.0f} s, {venv}', flush=True)
# The environment may have been made from another checkout; PYTHONPATH puts this one first
code = run(['make', '--no-print-directory', 'test', f'VENV={venv}'], start+limit, env={**os.environ, 'PYTHONPATH': str(root)})
sys.exit(code)
