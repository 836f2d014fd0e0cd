"Folders that an earlier version saved open, and predict what they did; tools/saved_folders.py made them"
import json, socket
from pathlib import Path
import numpy as np, pytest
from sft_nb.data.task import all_tasks; from sft_nb.deployment.predictor import load_predictor

saved = Path(__file__).parent/'fixtures'/'saved'
folders = sorted(o for o in saved.iterdir() if o.is_dir())

@pytest.fixture
def offline(monkeypatch, home):
    "Any connection fails the test"
    def connect(self, address): pytest.fail(f'no network may be used: {address}')
    for name in ('connect','connect_ex'): monkeypatch.setattr(socket.socket, name, connect)
    yield
    assert not list(home.rglob('*')), 'nothing is fetched into the cache folder'

def same(got, want):
    "Equal rows; numbers to 1e-5"
    assert len(got)==len(want)
    for a,b in zip(got, want):
        assert a.keys()==b.keys()
        for k,v in b.items(): assert np.isclose(a[k], v, rtol=0, atol=1e-5) if isinstance(v, float) else list(a[k])==v if isinstance(v, list) else a[k]==v, (a, b)

def test_every_task_has_one():
    own = {json.loads((o/'model'/'sft.json').read_text())['task'] for o in folders}
    assert own=={'image','text','translation','speech','image_text'}<=set(all_tasks())
    assert sum(o.stat().st_size for o in saved.rglob('*') if o.is_file())<2**20

@pytest.mark.parametrize('folder', folders, ids=lambda o: o.name)
def test_an_old_folder_predicts_the_same(folder, offline, one_thread):
    want = json.loads((folder/'expected.json').read_text())
    model = load_predictor(folder/'model', device='cpu')
    same(model.predict(folder/'inputs.json').to_dict('records'), want['predict'])
    if 'predict_proba' in want: same(model.predict_proba(folder/'inputs.json').to_dict('records'), want['predict_proba'])
    else: assert not model.vocab
