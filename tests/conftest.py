"Fixtures that several test files share"
import os, random, sys
from pathlib import Path
import pytest

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

def _seed(n):
    "The same random numbers for a test wherever it stands in a run: alone, in another order, on another worker"
    random.seed(n)
    if 'numpy' in sys.modules: sys.modules['numpy'].random.seed(n)
    if 'torch' in sys.modules: sys.modules['torch'].manual_seed(n)

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item): _seed(0)

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item): _seed(1) # another one, so that a fresh network is not the one that a fixture made

@pytest.fixture
def noise():
    "(width, height) -> a gray picture of noise, the same each time"
    import numpy as np
    from PIL import Image
    return lambda size: Image.fromarray(np.random.default_rng(0).normal(128, 90, size[::-1]).clip(0, 255).astype(np.uint8))

@pytest.fixture
def home(tmp_path_factory, monkeypatch):
    "An empty cache folder of its own"
    path = tmp_path_factory.mktemp('home')
    monkeypatch.setenv('SFT_NB_HOME', str(path))
    return path

@pytest.fixture
def one_thread():
    "torch on one thread, so that sums are taken in one order"
    import torch
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

@pytest.fixture
def displayed(monkeypatch, capsys):
    "What fastai displays as a table, as text: outside of a notebook IPython says of HTML no more than that it is some"
    monkeypatch.setattr('IPython.display.display', lambda *objects, **kw: print(*(getattr(o, 'data', o) for o in objects)))
    return lambda: capsys.readouterr().out

@pytest.fixture(scope='module')
def shared():
    "The helper; forks of a process that has never used gloo or a second thread"
    sys.path.insert(0, str(Path(__file__).parent))
    import shared
    yield shared
    sys.path.remove(str(Path(__file__).parent))

@pytest.fixture
def run(shared, tmp_path, monkeypatch):
    "A run of a toy's task in so many processes"
    for k in ('SFT_NB_HOME', 'SFT_NB_TIMEOUT'): monkeypatch.setenv(k, '')
    return lambda task, name, n, **how: shared.run(task, tmp_path, name, n, **how)
