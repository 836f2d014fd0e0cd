"A saved folder goes to a hub and comes back as it was; the hub is a stand-in on this machine"
import os, subprocess, sys
from pathlib import Path
import pandas as pd, pytest
from sft_nb.core.basics import FolderError
from sft_nb.data.task import get_task
from sft_nb.data.load import load_data
from sft_nb.training.learner import sft_learner
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.tasks.toys import make_toy
from hub import hub

pytestmark = pytest.mark.usefixtures('home', 'one_thread')
CLIENT = """
import sys
from huggingface_hub import HfApi, snapshot_download
folder,*where = sys.argv[1:]
HfApi().create_repo('you/model', exist_ok=True)
HfApi().upload_folder(repo_id='you/model', folder_path=folder)
print(snapshot_download('you/model', **(dict(local_dir=where[0]) if where else {})))
"""

def through_hub(folder, home, *where):
    "(where it was downloaded, what the hub holds); in a process of its own, which may use the network of this machine"
    with hub() as (address,models):
        env = {**os.environ, 'HF_ENDPOINT':address, 'HF_HOME':str(home), 'HF_HUB_OFFLINE':'0', 'HF_TOKEN':'hf_stand_in', 'HF_HUB_DISABLE_XET':'1', 'NO_PROXY':'127.0.0.1'}
        r = subprocess.run([sys.executable, '-c', CLIENT, str(folder), *map(str, where)], env=env, capture_output=True, text=True, timeout=120)
        assert not r.returncode, r.stderr
        return Path(r.stdout.splitlines()[-1]),models['you/model']

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('hub')
    toy = make_toy('text', tmp)
    learn = sft_learner(load_data('text', toy['source'], checkpoint=toy['checkpoint'], **toy['load']))
    return save_predictor(learn, tmp/'model'),['a fine day','a grim evening by the river']

@pytest.mark.parametrize('where', [(), ('plain',)], ids=['cache','local_dir'])
def test_there_and_back(saved, tmp_path, where):
    folder,items = saved
    back,held = through_hub(folder, tmp_path/'hf', *(tmp_path/o for o in where))
    files = {str(p.relative_to(folder)):p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    assert held==files and all((back/k).read_bytes()==v for k,v in files.items())
    pd.testing.assert_frame_equal(load_predictor(back).predict(items), load_predictor(folder).predict(items))

def test_it_is_a_checkpoint_too(saved, tmp_path):
    folder,_ = saved
    through_hub(folder, tmp_path/'hf')
    code = ("import sys; from sft_nb.all import *; from sft_nb.tasks.toys import make_toy; toy = make_toy('text', sys.argv[1]); "
            "dls = load_data('text', toy['source'], checkpoint='hf:you/model', **toy['load']); learn = sft_learner(dls); print(dls.sft.checkpoint.ref, len(learn.model.groups))")
    r = subprocess.run([sys.executable, '-c', code, str(tmp_path)], env={**os.environ, 'HF_HOME':str(tmp_path/'hf'), 'HF_HUB_OFFLINE':'1'}, capture_output=True, text=True, timeout=120)
    assert not r.returncode, r.stderr
    assert r.stdout.split()[-2:]==['hf:you/model', '4']

def test_what_was_changed_on_the_hub_is_refused(saved, tmp_path):
    back,_ = through_hub(saved[0], tmp_path/'hf', tmp_path/'plain')
    (back/'config.json').write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(FolderError): load_predictor(back)
