"The saved folder: equal predictions in a new process, the library's own loading, and what is refused on opening"
import json, os, pickle, random, shutil, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pandas as pd, pytest, timm, torch
from safetensors.torch import load_file, save_file
from torch import nn
from sft_nb.core.basics import DataError, FolderError, SftError, sha256_file
from sft_nb.data.task import get_task
from sft_nb.data.load import load_data
from sft_nb.training.learner import sft_learner
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.tasks.toys import make_toy

def learner(folder, checkpoint='timm:test_resnet', data=None, size=64, fit=True, **kw):
    toy = make_toy('image', folder)
    dls = load_data('image', toy['source'] if data is None else data(folder), checkpoint=checkpoint, pretrained=False, **{**toy['load'], 'size':size})
    learn = sft_learner(dls, **{'freeze':None, **kw})
    if fit:
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return learn

def several(folder):
    files = sorted(str(o) for o in folder.rglob('*.png'))
    return pd.DataFrame(dict(image=files, label=[[Path(o).parent.name]+['even']*(i%2) for i,o in enumerate(files)]))

def own_head(): return nn.Sequential(nn.Linear(timm.create_model('test_resnet').num_features, 4), nn.Tanh(), nn.Linear(4, 2))

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    learn = learner(folder/'shapes')
    save_predictor(learn, folder/'model')
    return learn, folder/'model'

def proba(model, ev): return model.predict_proba(list(ev.rows.image))[model.vocab].to_numpy()

NEW = '''
import sys, numpy as np, pandas as pd, torch
torch.load = None
from sft_nb.deployment.predictor import load_predictor
model = load_predictor(sys.argv[1])
table = model.predict_proba(open(sys.argv[2]).read().split('\\n'))
np.save(sys.argv[3], table[model.vocab].to_numpy())
'''

@pytest.mark.parametrize('kw', [dict(), dict(head=[8]), dict(head=[8], dropout=.3), dict(dropout=.3), dict(head='flatten:8'), dict(data=several),
    dict(checkpoint='timm:test_vit', size=80), dict(checkpoint='timm:test_convnext'), dict(checkpoint='timm:test_efficientnet')],
    ids=lambda kw: str({k:getattr(v, '__name__', v) for k,v in kw.items()}))
def test_equal_after_reload(tmp_path, kw):
    learn = learner(tmp_path/'shapes', **kw)
    save_predictor(learn, tmp_path/'model')
    ev = evaluate(learn)
    (tmp_path/'items').write_text('\n'.join(ev.rows.image))
    if kw in (dict(), dict(data=several)):
        subprocess.run([sys.executable, '-c', NEW, tmp_path/'model', tmp_path/'items', tmp_path/'p.npy'], check=True)
        probs = np.load(tmp_path/'p.npy')
    else: probs = proba(load_predictor(tmp_path/'model'), ev)
    assert np.abs(probs-ev.probabilities).max()<1e-5
    model = load_predictor(tmp_path/'model')
    table = model.predict(list(ev.rows.image))
    assert list(table.prediction)==list(ev.rows.prediction) and np.allclose(table.probability, ev.rows.probability, atol=1e-5)
    assert evaluate(model, on=learn.spec.split('valid')[['image','label']]).confusion().equals(ev.confusion())
    assert model.metrics==pytest.approx(ev.metrics)

@pytest.mark.parametrize('name,size', [('test_resnet',64), ('test_vit',80), ('test_convnext',64), ('test_efficientnet',64)])
def test_timm_opens_it(tmp_path, name, size):
    learn = learner(tmp_path/'shapes', f'timm:{name}', size=size)
    save_predictor(learn, tmp_path/'model')
    x = torch.randn(2, 3, size, size)
    with torch.no_grad(): ours,theirs = learn.model.eval().cpu()(x),timm.create_model(f'local-dir:{tmp_path/"model"}', pretrained=True).eval()(x)
    assert torch.allclose(ours, theirs, atol=1e-5)

def test_what_is_written(saved):
    learn,path = saved
    info = json.loads((path/'sft.json').read_text())
    assert info['format']==2 and info['task']=='image' and info['vocab']==['round','square'] and info['head'] is None and info['seed']==42
    assert info['checkpoint']['ref']=='timm:test_resnet' and info['checkpoint']['arch']=='test_resnet'
    assert sum(info['groups'].values())==sum(p.numel() for p in learn.model.parameters()) and list(info['groups'])[-1]=='head'
    assert {k:info['data'][k] for k in ('n_train','n_valid','n_test')}==dict(n_train=12, n_valid=4, n_test=0)
    assert set(info['versions'])=={'python','sft_nb','torch','fastai','timm','safetensors'}
    assert info['numbers']==sum(v.numel() for v in load_file(path/'model.safetensors').values())
    assert set(info['files'])=={o.name for o in path.iterdir()}-{'sft.json','README.md'}
    assert all(sha256_file(path/k)==v['sha256'] for k,v in info['files'].items())
    card = (path/'README.md').read_text()
    assert load_predictor(path).card==card and 'license: apache-2.0' in card and 'round, square' in card

def test_the_data_are_known_by_their_hash(saved, tmp_path):
    def fingerprint(p): return json.loads((p/'sft.json').read_text())['data']['sha256']
    same = learner(tmp_path/'same', fit=False)
    save_predictor(same, tmp_path/'a', metrics={})
    same.spec.rows.loc[0,'label'] = 'square'
    save_predictor(same, tmp_path/'b', metrics={})
    assert fingerprint(tmp_path/'a')==fingerprint(saved[1])!=fingerprint(tmp_path/'b')

def test_save_again(saved, tmp_path):
    "A folder in the way, a failure half way, and a predictor that is saved in its turn"
    learn,path = saved
    with pytest.raises(FolderError, match='exists already'): save_predictor(learn, path)
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'diary.txt').write_text('dear')
    with pytest.raises(FolderError, match='is not a saved model'): save_predictor(learn, tmp_path/'mine', overwrite=True)
    assert (tmp_path/'mine'/'diary.txt').read_text()=='dear'
    model = load_predictor(path)
    save_predictor(model, tmp_path/'again', metrics=dict(accuracy=.5))
    save_predictor(model, tmp_path/'again', overwrite=True)
    again = load_predictor(tmp_path/'again')
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(again.model(x), model.model(x)) and again.metrics==model.metrics and again.info['data']==model.info['data']
    with pytest.raises(DataError, match='finite'): save_predictor(learn, tmp_path/'bad', metrics=dict(accuracy=float('nan')))
    assert sorted(o.name for o in tmp_path.iterdir())==['again','mine']

def test_own_module_as_head(tmp_path, saved):
    learn = learner(tmp_path/'shapes', head=own_head())
    save_predictor(learn, tmp_path/'model')
    with pytest.raises(FolderError, match='Tanh'): load_predictor(tmp_path/'model')
    ev = evaluate(learn)
    assert np.allclose(proba(load_predictor(tmp_path/'model', head=own_head()), ev), ev.probabilities, atol=1e-5)
    with pytest.raises(FolderError, match='could not be opened'): load_predictor(tmp_path/'model', head=nn.Linear(3, 2))
    with pytest.raises(FolderError, match='Leave head= out'): load_predictor(saved[1], head=own_head())

def test_items(saved, tmp_path):
    "What predict takes, and which items it names"
    learn,path = saved
    model,files = load_predictor(path),list(evaluate(learn).rows.image)
    want = model.predict(files)
    assert list(want.columns)==['item','prediction','probability'] and list(want['item'])==files
    from PIL import Image
    pd.DataFrame(dict(image=files)).to_csv(tmp_path/'files.csv', index=False)
    frame = pd.DataFrame(dict(image=files))
    for items in (iter(files), list(map(Path, files)), list(map(Image.open, files)), [Path(o).read_bytes() for o in files], frame, tmp_path/'files.csv'):
        assert np.allclose(model.predict(items, batch_size=3).probability, want.probability, atol=1e-6)
    assert model.predict(pd.DataFrame(dict(file=files)), input='file').prediction.equals(want.prediction)
    assert model.predict(files[0]).probability[0]==pytest.approx(want.probability[0], abs=1e-6)
    assert len(model.predict([]))==0 and len(model.predict_proba([]).columns)==3
    assert list(model.predict(files+files[:1])['item'])==files+files[:1]
    (tmp_path/'broken.png').write_bytes(b'no picture')
    with pytest.raises(DataError) as e: model.predict([files[0], tmp_path/'gone.png', tmp_path/'broken.png'])
    assert 'gone.png: is missing' in str(e.value) and 'broken.png: not a picture' in str(e.value)
    assert list(model.predict([files[0], tmp_path/'gone.png', files[1]], bad='skip').probability)==pytest.approx(list(want.probability[:2]))
    with pytest.raises(DataError, match='carries no data'): evaluate(model)

def test_threads(saved):
    model,files = load_predictor(saved[1]),list(evaluate(saved[0]).rows.image)
    alone = [model.predict(f) for f in files]
    with ThreadPoolExecutor(4) as pool: together = list(pool.map(model.predict, files*4))
    assert all(a.equals(b) for a,b in zip(alone*4, together))

def test_device(saved):
    with pytest.raises(FolderError, match="Try 'cpu'"): load_predictor(saved[1], device='gpu')
    assert next(load_predictor(saved[1], device='cpu').model.parameters()).device.type=='cpu'

# What is refused

@pytest.fixture
def copy(saved, tmp_path): return Path(shutil.copytree(saved[1], tmp_path/'copy'))

def refused(folder, words):
    with pytest.raises(FolderError, match=words) as e: load_predictor(folder)
    assert '\n' not in str(e.value)

def rewrite(folder, change=lambda info: None):
    "Change sft.json, with hashes that fit the files"
    info = json.loads((folder/'sft.json').read_text())
    info['files'] = {k:dict(bytes=(folder/k).stat().st_size, sha256=sha256_file(folder/k)) for k in info['files']}
    change(info)
    (folder/'sft.json').write_text(json.dumps(info))

@pytest.mark.parametrize('name', ['model.safetensors', 'config.json'])
def test_damaged_files(copy, name):
    data = (copy/name).read_bytes()
    (copy/name).write_bytes(data[:-10])
    refused(copy, f'{name} has .* were written')
    (copy/name).write_bytes(data[:-1]+bytes([data[-1]^1]))
    refused(copy, f'{name} was changed')
    (copy/name).unlink()
    refused(copy, f'{name} is missing')
    os.mkfifo(copy/name)
    refused(copy, f'{name} is missing')

def test_card_may_be_edited(copy):
    (copy/'README.md').write_text('mine')
    (copy/'metrics.json').write_text('{}')
    assert load_predictor(copy).card=='mine'
    (copy/'README.md').unlink()
    assert 'Trained from fresh weights of' in load_predictor(copy).card

@pytest.mark.parametrize('name', ['../copy/config.json', '/etc/hostname', 'a/../../x', '..\\x', 'C:x', '.', ''])
def test_paths_stay_inside(copy, name):
    rewrite(copy, lambda info: info['files'].update({name:dict(bytes=1, sha256='0'*64)}))
    refused(copy, 'not a path inside|should be an object of bytes')

def test_links_stay_inside(copy, tmp_path):
    (copy/'config.json').rename(tmp_path/'elsewhere.json')
    (copy/'config.json').symlink_to(tmp_path/'elsewhere.json')
    refused(copy, 'link that leaves the folder')

def test_not_saved_here(tmp_path):
    refused(tmp_path/'none', 'There is no folder')
    refused(tmp_path, 'holds no sft.json')
    for text in ('', '[]', '{"format": "1"}', '{"format": NaN}', '['*100_000, '\xff'):
        (tmp_path/'sft.json').write_bytes(text.encode('latin-1'))
        refused(tmp_path, 'sft.json')

def test_other_formats(copy):
    rewrite(copy, lambda info: info.update(format=3))
    refused(copy, 'of a saved model of format 3, this sft_nb reads format 2. Upgrade it')
    rewrite(copy, lambda info: info.update(format=0))
    refused(copy, 'of format 0.*from before the first release')
    rewrite(copy, lambda info: info.update(format=2, task='imagee'))
    refused(copy, "Did you mean 'image'")

def test_weights_that_do_not_fit(copy):
    "Other shapes, missing and further tensors, NaN"
    state = load_file(copy/'model.safetensors')
    key = next(k for k,v in state.items() if v.is_floating_point())
    rest = {k:v for k,v in state.items() if k!=key}
    for other,words in (({**state, key:state[key][:,None]}, key), ({**state, key:torch.zeros(3)}, 'were saved'), (rest, 'were saved'),
                        ({**state, 'more':torch.zeros(3)}, 'were saved'), ({**rest, 'other':state[key]}, 'could not be opened'),
                        ({**state, key:torch.full_like(state[key], float('nan'))}, 'hold NaN')):
        save_file(other, copy/'model.safetensors')
        rewrite(copy)
        refused(copy, words)

def test_another_model(copy):
    "A config, a vocabulary or counts that belong to another model"
    config = json.loads((copy/'config.json').read_text())
    (copy/'config.json').write_text(json.dumps({**config, 'architecture':'resnet18'}))
    rewrite(copy)
    refused(copy, "timm model 'resnet18'")
    (copy/'config.json').write_text(json.dumps({**config, 'model_args':dict(channels=[20_000]*4)}))
    rewrite(copy)
    refused(copy, 'It is not built')
    (copy/'config.json').write_text(json.dumps(config))
    rewrite(copy, lambda info: info['vocab'].append('oval'))
    refused(copy, 'could not be opened')
    rewrite(copy, lambda info: (info.update(vocab=['round','square']), info['groups'].update(head=1)))
    refused(copy, "layer group 'head' has")

@pytest.mark.parametrize('name', ['head.safetensors', 'tokenizer.json', 'adapter_config.json', 'sub/config.json'])
def test_added_files(copy, name):
    (copy/name).parent.mkdir(exist_ok=True)
    (copy/name).write_bytes(b'{}')
    refused(copy, 'was added')

class _Canary:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)

def test_no_pickle_is_opened(copy, tmp_path):
    "A pickle in every place that could hold one is not run"
    bad = pickle.dumps(_Canary(tmp_path/'ran'))
    for name in ('pytorch_model.bin', 'model.pth', 'model.pkl', 'export.pkl', 'training_args.bin', 'optimizer.pt'): (copy/name).write_bytes(bad)
    (copy/'modeling.py').write_text(f'import os; os.mkdir({str(tmp_path/"ran")!r})')
    load_predictor(copy)
    for name in ('model.safetensors', 'config.json', 'sft.json'):
        kept = (copy/name).read_bytes()
        (copy/name).write_bytes(bad)
        if name!='sft.json': rewrite(copy)
        refused(copy, 'could not be opened|is damaged|cannot be read')
        (copy/name).write_bytes(kept)
        if name!='sft.json': rewrite(copy)
    assert not (tmp_path/'ran').exists()

VALUES = [None, True, -1, 1.5, 10**400, '', 'x', '../x', '\0', [], ['a','a'], [[]], {}, {'a':None}, {'a':{}}]

def mutate(o, rng):
    "A JSON value with one place changed"
    if isinstance(o, dict) and o and rng.random()<.85:
        k = rng.choice(list(o))
        if rng.random()<.2: return {a:b for a,b in o.items() if a!=k}
        return {**o, k:mutate(o[k], rng)}
    if isinstance(o, list) and o and rng.random()<.7:
        i = rng.randrange(len(o))
        return [*o[:i], mutate(o[i], rng), *o[i+1:]]
    return rng.choice(VALUES)

@pytest.mark.parametrize('name', ['sft.json', 'config.json'])
def test_mutated_json(copy, name):
    "Whatever stands in the JSON files, the folder opens or is refused in words"
    kept,rng,n = (copy/name).read_text(),random.Random(name),0
    before = threading.active_count()
    for _ in range(60):
        (copy/name).write_text(json.dumps(mutate(json.loads(kept), rng)))
        if name!='sft.json': rewrite(copy)
        try: load_predictor(copy)
        except SftError as e: n += bool(str(e))
    assert n>20 and threading.active_count()<=before+1
