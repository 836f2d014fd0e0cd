"Fixtures that several test files share"
import os
import pytest

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

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
