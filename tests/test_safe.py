"What an attacker would put into a folder, a checkpoint, the cache or an archive: nothing of it is run, nothing outside is touched, each is refused in words"
import contextlib, io, json, os, pickle, random, shutil, struct, sys, tarfile, zipfile
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import load_file, save_file
from sft_nb.core.basics import AssetError, CheckpointError, FolderError, SftError, sha256_file, write_atomic
from sft_nb.checkpoints.assets import Asset, ASSETS, fetch, _unpack
from sft_nb.checkpoints.references import open_checkpoint
from sft_nb.data.task import get_task
from sft_nb.data.rows import read_rows
from sft_nb.data.corrections import Marks
from sft_nb.data.load import load_data
from sft_nb.training.learner import sft_learner
from sft_nb.training.cache_store import Activations, cache_folder, cache_info, _Writer
from sft_nb.training.cache import frozen_cache
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.cli import main
from sft_nb.tasks.toys import make_toy

ITEMS = dict(image=None, text='fine warm day')

def learner(task, folder):
    toy = make_toy(task, folder)
    return sft_learner(load_data(task, toy['source'], checkpoint=toy['checkpoint'], pretrained=toy['pretrained'], **toy['load']), freeze=None)

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "task -> (a saved folder, an item, a checkpoint folder)"
    out = {}
    for task in ITEMS:
        at = tmp_path_factory.mktemp(task)
        with contextlib.chdir(at): save_predictor(learner(task, Path('toy')), 'model', metrics=dict(accuracy=.5)) # no absolute path among its bytes
        picture = min((at/'toy').rglob('*.png'), default=None)
        out[task] = at/'model', str(picture) if picture else ITEMS[task], at/'toy'/'bert' if task=='text' else at/'model'
    return out

@pytest.fixture(params=ITEMS)
def copy(request, made, tmp_path): return Path(shutil.copytree(made[request.param][0], tmp_path/'copy'))

@pytest.fixture
def text(made, tmp_path): return Path(shutil.copytree(made['text'][0], tmp_path/'copy'))

@pytest.fixture
def image(made, tmp_path): return Path(shutil.copytree(made['image'][0], tmp_path/'copy'))

@pytest.fixture
def bert(made, tmp_path): return Path(shutil.copytree(made['text'][2], tmp_path/'bert'))

def rehash(folder, change=lambda info: None):
    "An `sft.json` whose sizes and hashes fit the files, as an attacker would write it"
    info = json.loads((folder/'sft.json').read_text())
    info['files'] = {k:dict(bytes=(folder/k).stat().st_size, sha256=sha256_file(folder/k)) for k in info['files'] if (folder/k).is_file()}
    change(info)
    (folder/'sft.json').write_text(json.dumps(info))

def edit(path, **change):
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

def refused(folder, words, opener=load_predictor, error=FolderError):
    with pytest.raises(error, match=words) as e: opener(folder)
    assert '\n' not in str(e.value)

def cli(*args):
    "Exit code and standard error of the command in this process"
    out,err = io.StringIO(),io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: code = main([str(o) for o in args])
        except SystemExit as e: code = e.code
    return code,err.getvalue()

class Canary:
    "Makes a folder when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)

def test_the_canary_sings(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path/'ran')))
    assert (tmp_path/'ran').exists()

# The saved folder

def with_header(n): return struct.pack('<Q', n)+b'{}'

TENSORS = {
    'huge header': (lambda p: p.write_bytes(with_header(2**60)), 'a header of 1,152,921,504,606,846,976 bytes'),
    'long header': (lambda p: p.write_bytes(struct.pack('<Q', 2**25)+b' '*2**25+b'xx'), 'a header of 33,554,432 bytes'),
    'truncated': (lambda p: p.write_bytes(p.read_bytes()[:-9]), 'is damaged'),
    'empty': (lambda p: p.write_bytes(b''), 'is damaged'),
    'no tensors': (lambda p: save_file({}, p), 'holds no tensors'),
    'complex': (lambda p: save_file({k:v.to(torch.complex64) for k,v in load_file(p).items()}, p), 'numbers of kind C64'),
    'whole numbers': (lambda p: save_file({k:v.to(torch.int8) for k,v in load_file(p).items()}, p), 'stored in whole numbers'),
    'NaN': (lambda p: save_file({k:v*float('nan') if v.is_floating_point() else v for k,v in load_file(p).items()}, p), 'hold NaN'),
    'infinite': (lambda p: save_file({k:v.double()*1e300+1e300 if v.is_floating_point() else v for k,v in load_file(p).items()}, p), 'hold NaN or infinite'),
    'other shapes': (lambda p: save_file({k:v.flatten() for k,v in load_file(p).items()}, p), 'could not be opened'),
    'more tensors': (lambda p: save_file({**load_file(p), 'more':torch.zeros(3)}, p), 'were saved'),
    'a tensor over the end': (lambda p: p.write_bytes(struct.pack('<Q', 60)+b'{"w":{"dtype":"F32","shape":[9000],"data_offsets":[0,36000]}}'.ljust(60)), 'is damaged'),
}

@pytest.mark.parametrize('what', TENSORS)
def test_weights(copy, what):
    change,words = TENSORS[what]
    change(copy/'model.safetensors')
    rehash(copy)
    refused(copy, words)

CONFIGS = {
    'weights from elsewhere': dict(checkpoint_path='/etc/passwd'), 'an overlay': dict(pretrained_cfg_overlay=dict(file='/x.pth')), 'another cache': dict(cache_dir='/tmp/x'),
    'kernels': dict(attn_implementation='someone/kernels'), 'their kernels': dict(_attn_implementation='someone/kernels'), 'use_kernels': dict(use_kernels=True),
    'weights by name': dict(transformers_weights='../../x.safetensors'), 'a file': dict(vocab_file='/etc/passwd'), 'code': dict(trust_remote_code=True),
    'a number': dict(hidden_size=10**12), 'fetched weights': dict(use_pretrained_backbone=True),
}

@pytest.mark.parametrize('what', CONFIGS)
def test_configs(copy, what):
    edit(copy/'config.json', model_args=CONFIGS[what], **CONFIGS[what])
    rehash(copy)
    refused(copy, next(iter(CONFIGS[what])))

@pytest.mark.parametrize('key', ['num_hidden_layers', 'hidden_size', 'vocab_size', 'max_position_embeddings', 'intermediate_size'])
def test_a_config_that_asks_for_more(text, key):
    edit(text/'config.json', **{key:2**30})
    rehash(text)
    refused(text, 'asks for more than|could not be opened')

@pytest.mark.parametrize('key', ['channels', 'layers'])
def test_a_picture_network_that_asks_for_more(image, key):
    edit(image/'config.json', model_args={key:[10**6]*4})
    rehash(image)
    refused(image, 'asks for more than')

PREPROCESS = dict(size=10**7, mean=[.5]*10**5, std=[0,0,0], crop_pct=-1, max_length=10**9, num_beams=10**6, sampling_rate=-1, anything='x'*10**5, deep=[[[1]]])

@pytest.mark.parametrize('key', PREPROCESS)
def test_preprocessing_that_no_machine_can_follow(copy, key):
    rehash(copy, lambda info: info['preprocess'].update({key:PREPROCESS[key]}))
    refused(copy, repr(key))

def test_sizes_come_before_reading(copy):
    "A file as large as a disk is not read to find that its hash is another"
    with open(copy/'model.safetensors', 'r+b') as f: f.truncate(2**42)
    edit(copy/'sft.json', files={**json.loads((copy/'sft.json').read_text())['files'], 'model.safetensors':dict(bytes=2**42, sha256='0'*64)})
    refused(copy, 'bytes of weights for')
    rehash_ = lambda info: info['files'].update({'model.safetensors':dict(bytes=2**42, sha256='0'*64)})
    info = json.loads((copy/'sft.json').read_text())
    rehash_(info)
    info['groups'] = {k:2**40 for k in info['groups']}
    (copy/'sft.json').write_text(json.dumps(info))
    refused(copy, 'GB of memory')

def test_large_files_beside_the_weights(copy):
    with open(copy/'vocab.bin', 'wb') as f: f.truncate(2**31)
    info = json.loads((copy/'sft.json').read_text())
    info['files']['vocab.bin'] = dict(bytes=2**31, sha256='0'*64)
    (copy/'sft.json').write_text(json.dumps(info))
    refused(copy, 'bytes beside its weights')

def test_json_of_other_kinds(copy):
    for words,data in (('stands twice', b'{"format": 2, "format": 1}'), ('deeper', b'['*100+b']'*100), ('cannot be read', b'\xff\xfe{}'), ('cannot be read', b'[1e')):
        (copy/'sft.json').write_bytes(data)
        refused(copy, words)
    with open(copy/'sft.json', 'wb') as f: f.truncate(2**30)
    refused(copy, 'the limit is')

LINKS = ('config.json', 'model.safetensors', 'sft.json')

@pytest.mark.parametrize('name', LINKS)
def test_links_that_leave(copy, tmp_path, name):
    (copy/name).rename(tmp_path/'outside')
    (copy/name).symlink_to(tmp_path/'outside')
    refused(copy, 'link that leaves')

def test_a_card_that_leads_elsewhere_is_passed_over(copy, tmp_path):
    (tmp_path/'secret').write_text('secret')
    (copy/'README.md').unlink()
    (copy/'README.md').symlink_to(tmp_path/'secret')
    assert 'secret' not in _card(copy)

def _card(folder):
    try: return load_predictor(folder).card
    except FolderError as e: return str(e)

def test_a_hard_link_is_not_written_through(made, tmp_path):
    "Saving over a folder leaves the file that one of its names is linked to as it was"
    model = load_predictor(made['text'][0], device='cpu')
    folder = save_predictor(model, tmp_path/'again')
    os.link(folder/'config.json', tmp_path/'mine.json')
    was = (tmp_path/'mine.json').read_bytes()
    save_predictor(model, folder, overwrite=True, metrics={})
    assert (tmp_path/'mine.json').read_bytes()==was and (tmp_path/'mine.json').stat().st_nlink==1

def test_a_pipe_is_not_waited_for(copy):
    os.mkfifo(copy/'more')
    refused(copy, 'more is not a plain file')

def test_an_adapter_leads_elsewhere(text):
    (text/'adapter_config.json').write_text('{"base_model_name_or_path": "/tmp"}')
    rehash(text, lambda info: info['files'].update({'adapter_config.json':dict(bytes=36, sha256=sha256_file(text/'adapter_config.json'))}))
    edit(text/'sft.json')
    info = json.loads((text/'sft.json').read_text())
    info['files']['adapter_config.json']['bytes'] = (text/'adapter_config.json').stat().st_size
    (text/'sft.json').write_text(json.dumps(info))
    refused(text, 'leads to another model')

def test_an_index_stays_inside(text):
    (text/'model.safetensors.index.json').write_text(json.dumps(dict(weight_map={'a':'../../x.safetensors'})))
    (text/'model.safetensors').rename(text/'other.safetensors')
    rehash(text, lambda info: info['files'].update({n:dict(bytes=(text/n).stat().st_size, sha256=sha256_file(text/n)) for n in ('other.safetensors','model.safetensors.index.json')}))
    refused(text, 'not a safetensors file of the folder')

def test_swapped_tokenizer(text):
    tok = json.loads((text/'tokenizer.json').read_text())
    vocab = list(tok['model']['vocab'])
    tok['model']['vocab'] = dict(zip([*vocab[:5], *reversed(vocab[5:])], range(len(vocab))))
    (text/'tokenizer.json').write_text(json.dumps(tok))
    refused(text, 'tokenizer.json (has|was)')
    rehash(text)
    refused(text, 'its tokenizer is not the one')

@pytest.mark.parametrize('form', [{}, [], '1', None, True, -1, 1.5])
def test_a_format_that_is_no_number(copy, form):
    edit(copy/'sft.json', format=form)
    refused(copy, 'names no format')

@pytest.mark.parametrize('where', ['seed', 'format', 'preprocess', 'groups', 'metrics', 'data', 'numbers'])
def test_numbers_without_end(copy, where):
    info = json.loads((copy/'sft.json').read_text())
    edit(copy/'sft.json', **{where:{k:10**400 for k in info[where]} if isinstance(info[where], dict) else 10**400})
    refused(copy, 'a whole number of 401 digits')

def test_a_format_from_before_the_first_release(copy):
    edit(copy/'sft.json', format=1)
    refused(copy, 'saved model of format 1, this sft_nb reads format 2. It is from before the first release')

# A checkpoint

def tensors(**more): return lambda d: save_file({**load_file(d/'model.safetensors'), **more}, d/'model.safetensors')

CHECKPOINTS = {
    'a list': (lambda d: (d/'config.json').write_text('[]'), 'holds a list'),
    'no JSON': (lambda d: (d/'config.json').write_bytes(b'\x80\x04'), 'cannot be read as JSON'),
    'a number as a type': (lambda d: edit(d/'config.json', model_type=['bert']), 'holds no config.json with'),
    'kernels': (lambda d: edit(d/'config.json', attn_implementation='someone/kernels'), 'runs kernels'),
    'layers without end': (lambda d: edit(d/'config.json', num_hidden_layers=2**30), 'asks for more than'),
    'a width without end': (lambda d: edit(d/'config.json', hidden_size=2**24), 'asks for|cannot build'),
    'words without end': (lambda d: edit(d/'config.json', vocab_size=2**30), 'asks for'),
    'huge header': (lambda d: (d/'model.safetensors').write_bytes(with_header(2**50)), 'is damaged'),
    'truncated': (lambda d: (d/'model.safetensors').write_bytes((d/'model.safetensors').read_bytes()[:-1]), 'is damaged'),
    'complex': (tensors(w=torch.zeros(2, dtype=torch.complex64)), 'numbers of kind C64'),
    'an adapter': (lambda d: (d/'adapter_config.json').write_text('{}'), 'leads to another model'),
    'an index': (lambda d: (d/'model.safetensors.index.json').write_text('{"weight_map": {"a": "../x.safetensors"}}'), 'not a safetensors file of the folder'),
    'a pipe': (lambda d: os.mkfifo(d/'vocab.txt'), 'not a plain file'),
    'a tokenizer from elsewhere': (lambda d: edit(d/'tokenizer_config.json', vocab_file='/etc/passwd'), 'reads a file from elsewhere'),
}

@pytest.mark.parametrize('what', CHECKPOINTS)
def test_checkpoint(bert, what):
    change,words = CHECKPOINTS[what]
    change(bert)
    refused(bert, words, open_checkpoint, CheckpointError)

def test_checkpoint_links(bert, tmp_path):
    (bert/'model.safetensors').rename(tmp_path/'outside.safetensors')
    (bert/'model.safetensors').symlink_to(tmp_path/'outside.safetensors')
    refused(bert, 'link that leaves', open_checkpoint, CheckpointError)

def test_checkpoint_weights_that_are_no_numbers(bert, image):
    for folder,build in ((bert, lambda d: open_checkpoint(d).hf_model('AutoModel')), (image, lambda d: open_checkpoint(d).timm_model())):
        save_file({k:v*float('nan') if v.is_floating_point() else v for k,v in load_file(folder/'model.safetensors').items()}, folder/'model.safetensors')
        refused(folder, 'hold NaN', build, CheckpointError)

def test_a_pth_that_unpacks_to_more(image):
    (image/'model.safetensors').unlink()
    with zipfile.ZipFile(image/'model.pth', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('archive/data/0', bytes(10**7))
    refused(image, 'unpacks to 10,000,000 bytes', open_checkpoint, CheckpointError)

def test_timm_reads_no_other_file(image, tmp_path):
    "The arguments of a model cannot name a file of weights"
    torch.save(dict(w=Canary(tmp_path/'ran')), tmp_path/'x.pth')
    edit(image/'config.json', model_args=dict(checkpoint_path=str(tmp_path/'x.pth')))
    refused(image, 'checkpoint_path', open_checkpoint, CheckpointError)
    assert not (tmp_path/'ran').exists()

# The cache

@pytest.fixture
def entry(tmp_path):
    w = _Writer(tmp_path, None)
    w.add(dict(hidden=torch.ones(3,4,2), mask=torch.ones(3,4)))
    w.close(order=[2,0,1])
    Activations(tmp_path)
    return tmp_path

def npy(a):
    out = io.BytesIO()
    np.save(out, a, allow_pickle=True)
    return out.getvalue()

def tensor(dtype='float32', shape=(2,), name='hidden'): return lambda d: edit(d/'meta.json', tensors={name:dict(dtype=dtype, shape=list(shape))})

ENTRIES = {
    'no JSON': (lambda d: (d/'meta.json').write_bytes(pickle.dumps(0)), 'cannot be read as JSON'), 'a list': (lambda d: (d/'meta.json').write_text('[]'), 'does not describe an entry'),
    'a count below 0': (lambda d: edit(d/'meta.json', n=-1), 'does not describe an entry'), 'another kind': (tensor('load'), 'does not describe an entry'),
    'a shape below 0': (tensor(shape=(-2,)), 'does not describe an entry'), 'a shape without end': (tensor(shape=(10**12,)), 'are described'),
    'a name that leaves': (tensor(name='../x'), 'not a path inside'), 'more rows': (lambda d: edit(d/'meta.json', n=10**9), 'must hold 1,000,000,000 whole numbers'),
    'truncated': (lambda d: (d/'hidden.bin').write_bytes(b'123'), 'has 3 bytes'), 'gone': (lambda d: (d/'hidden.bin').unlink(), 'is damaged'),
    'lengths below 0': (lambda d: np.save(d/'lengths.npy', np.array([-1,5,8])), 'whole numbers'), 'a place twice': (lambda d: np.save(d/'place.npy', np.array([0,0,1])), 'not an order'),
    'objects': (lambda d: (d/'lengths.npy').write_bytes(npy(np.array([1,None,'a'], dtype=object))), 'is damaged'),
    'a npy that says more': (lambda d: (d/'place.npy').write_bytes(npy(np.arange(3)).replace(b'(3,)', b'(9999999999,)'.ljust(4)[:13])), 'is damaged'),
}

@pytest.mark.parametrize('what', ENTRIES)
def test_cache(entry, what):
    change,words = ENTRIES[what]
    change(entry)
    refused(entry, words, Activations)

def test_a_damaged_entry_is_made_anew(home, tmp_path, capsys):
    learn = learner('text', tmp_path/'toy')
    learn.freeze_to(group='head')
    def fit():
        with frozen_cache(learn), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    fit()
    for d in cache_info().key: (cache_folder()/d/'hidden.bin' if (cache_folder()/d/'hidden.bin').exists() else min((cache_folder()/d).glob('*.bin'))).write_bytes(b'12')
    (cache_folder()/cache_info().key[0]/'meta.json').write_text('[]')
    assert 'damaged' in list(cache_info().border)
    fit()
    assert 'is damaged' in capsys.readouterr().err and 'damaged' not in list(cache_info().border)

# Archives

def asset(**kw): return replace(Asset('toy', 'sdist', 'toy', '1', '', {'*':None}, 'MIT', 0, ''), **kw)

def tar(path, name='a.txt', data=b'hello', kind=tarfile.REGTYPE, link='', mode='w:gz'):
    with tarfile.open(path, mode) as t:
        m = tarfile.TarInfo(name)
        m.size,m.type,m.linkname = len(data) if kind==tarfile.REGTYPE else 0,kind,link
        t.addfile(m, io.BytesIO(data))
    return path

def zipped(path, name='a.txt', data=b'hello', attr=0):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        m = zipfile.ZipInfo(name)
        m.external_attr,m.compress_type = attr,zipfile.ZIP_DEFLATED
        z.writestr(m, data)
    return path

@pytest.mark.parametrize('pack,ending', [(tar, 'tar.gz'), (zipped, 'zip')])
@pytest.mark.parametrize('name', ['../a.txt', '/a.txt', 'b/../../a.txt', 'C:a.txt'])
def test_archives_stay_inside(tmp_path, pack, ending, name):
    (tmp_path/'in').mkdir()
    with pytest.raises(AssetError, match='leads out of its folder'): _unpack(asset(), pack(tmp_path/f'x.{ending}', name), tmp_path/'in')
    assert list((tmp_path/'in').iterdir())==[] and not (tmp_path/'a.txt').exists()

@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_archives_hold_no_links(tmp_path, kind):
    with pytest.raises(AssetError, match='a link'): _unpack(asset(), tar(tmp_path/'x.tar.gz', kind=kind, link='/etc/passwd'), tmp_path/'in')
    with pytest.raises(AssetError, match='a link'): _unpack(asset(), zipped(tmp_path/'x.zip', attr=0xA<<28), tmp_path/'in')
    assert not (tmp_path/'in').exists()

@pytest.mark.parametrize('members', [{'*':None}, {'other':None}])
def test_archives_do_not_burst(tmp_path, monkeypatch, members):
    "Also what is not asked for counts: it would be unpacked to be passed over"
    monkeypatch.setattr('sft_nb.checkpoints.assets._LIMIT', 2**20)
    for path in (tar(tmp_path/'x.tar.gz', data=bytes(2**22)), zipped(tmp_path/'x.zip', data=bytes(2**22))):
        assert path.stat().st_size<10_000
        with pytest.raises(AssetError, match='unpacks to more'): _unpack(asset(members=members), path, tmp_path/'in')

@pytest.mark.parametrize('pack,ending', [(tar, 'tar.gz'), (zipped, 'zip')])
def test_archives_that_are_damaged(tmp_path, pack, ending):
    data = pack(tmp_path/f'x.{ending}', data=random.Random(0).randbytes(10_000)).read_bytes()
    for bad in (data[:-3000], b'', data[:3]+bytes(200)+data[203:], pickle.dumps(Canary(tmp_path/'ran'))):
        (tmp_path/f'y.{ending}').write_bytes(bad)
        with pytest.raises(AssetError, match='damaged|holds no'): _unpack(asset(), tmp_path/f'y.{ending}', tmp_path/'in')
    assert not (tmp_path/'ran').exists()

def test_what_was_unpacked_says_anything(home):
    a = ASSETS['digits']
    for text in ('[]', '{}', '{"sha256": 1}', 'null', f'{{"sha256": "{a.sha256}", "files": 3}}'):
        write_atomic(a.folder/'.asset.json', text)
        with pytest.raises(AssetError, match='no file'): fetch('digits', archive='gone.whl')

# Canaries

NAMES = ('pytorch_model.bin', 'model.pth', 'model.pt', 'export.pkl', 'training_args.bin', 'optimizer.pt', 'adapter_model.bin', 'words.pkl', 'rng_state.pth', 'model.ckpt',
         'head.bin', 'flax_model.msgpack', 'tf_model.h5', 'model.npz', '1_Pooling/pytorch_model.bin', 'data.joblib')

def plant(folder, tmp):
    "Pickles and code under every name that some library would run; returns how many"
    bad,torch_bad = pickle.dumps(Canary(tmp/'ran')),io.BytesIO()
    torch.save(dict(w=Canary(tmp/'ran')), torch_bad)
    for i,n in enumerate(NAMES):
        (folder/n).parent.mkdir(exist_ok=True)
        (folder/n).write_bytes((bad, torch_bad.getvalue())[i%2])
    code = f'import os; os.mkdir({str(tmp/"ran")!r})\n'
    for n in ('modeling.py', 'tokenization.py', '__init__.py', 'conftest.py', 'sitecustomize.py', 'handler.py'): (folder/n).write_text(code)
    return len(NAMES)+6

def test_no_pickle_beside_is_opened(copy, made, tmp_path):
    n = plant(copy, tmp_path)
    task = json.loads((copy/'sft.json').read_text())['task']
    load_predictor(copy, device='cpu').predict(made[task][1])
    assert not (tmp_path/'ran').exists()
    print(f'{n} pickles and scripts beside a saved {task} model, none was run')

def test_no_pickle_in_place_is_opened(copy, tmp_path):
    "In place of each file, once with the old hashes and once with its own"
    torch_bad = io.BytesIO()
    torch.save(dict(w=Canary(tmp_path/'ran')), torch_bad)
    files,n = sorted(p for p in copy.rglob('*') if p.is_file()),0
    whole = (copy/'sft.json').read_bytes()
    for path in files:
        kept = path.read_bytes()
        for bad in (pickle.dumps(Canary(tmp_path/'ran')), torch_bad.getvalue()):
            for own in (False, True):
                path.write_bytes(bad)
                if own and path.name!='sft.json': rehash(copy)
                with contextlib.suppress(SftError): load_predictor(copy, device='cpu')
                assert not (tmp_path/'ran').exists(), path
                n += 1
                path.write_bytes(kept)
                (copy/'sft.json').write_bytes(whole)
    print(f'{n} times a pickle in place of one of {len(files)} files, none was run')

def test_code_that_a_config_names_is_not_run(bert, text, tmp_path):
    for folder in (bert, text):
        plant(folder, tmp_path)
        edit(folder/'config.json', auto_map={'AutoConfig':'modeling.Config', 'AutoModel':'modeling.Model'})
        edit(folder/'tokenizer_config.json', auto_map={'AutoTokenizer':['tokenization.T', None]}, tokenizer_class='T')
    rehash(text)
    for f in (lambda: open_checkpoint(bert).hf_model('AutoModel'), lambda: open_checkpoint(bert).tokenizer(), lambda: load_predictor(text)):
        with contextlib.suppress(SftError): f()
    assert not (tmp_path/'ran').exists()

def test_no_pickle_in_a_checkpoint_is_opened(bert, image, tmp_path):
    n = plant(bert, tmp_path)+plant(image, tmp_path)
    assert open_checkpoint(bert).hf_model('AutoModel') is not None and open_checkpoint(image).timm_model() is not None
    for folder in (bert, image): (folder/'model.safetensors').unlink()
    refused(bert, 'is a pickle, which is not opened', open_checkpoint, CheckpointError)
    refused(image, 'was not opened', lambda d: open_checkpoint(d).timm_model(), CheckpointError)
    assert not (tmp_path/'ran').exists()
    print(f'{n} pickles and scripts in two checkpoints, none was run')

def test_no_pickle_in_the_cache_is_opened(entry, tmp_path):
    bad = npy(np.array([Canary(tmp_path/'ran')]*3, dtype=object))
    for name in ('lengths.npy', 'place.npy', 'meta.json', 'hidden.bin'):
        kept = (entry/name).read_bytes()
        (entry/name).write_bytes(bad)
        refused(entry, 'is damaged', Activations)
        (entry/name).write_bytes(kept)
    assert not (tmp_path/'ran').exists()

# Folders that are changed at random

VALUES = [None, True, False, -1, 0, 3, 1.5, 2**31+1, 10**30, '', 'x', '../x', '/etc/passwd', 'a\nb', '\0', [], {}, ['a','a'], [[]], [10**9]*4, {'a':None}, 'hf-hub:a/b', 'x'*2000]
KEYS = ['auto_map', 'checkpoint_path', 'attn_implementation', 'model_type', 'architecture', 'num_hidden_layers', 'model_args', 'tokenizer_class', 'quantization_config',
        'pretrained_cfg', 'files', 'groups', 'vocab', 'head', 'preprocess', 'num_classes', 'global_pool', 'transformers_weights', 'dtype', 'vocab_size', 'tie_word_embeddings']

def changed(o, way, value, key):
    "A JSON value with one place changed; `way` leads there, number by number"
    if isinstance(o, (dict,list)) and o and way:
        ks = list(o) if isinstance(o, dict) else list(range(len(o)))
        k = ks[way[0]%len(ks)]
        out = dict(o) if isinstance(o, dict) else list(o)
        if len(way)==1 and value is KEYS and isinstance(o, dict): return {a:b for a,b in o.items() if a!=k}
        out[k] = changed(o[k], way[1:], value, key)
        return out
    if isinstance(o, dict) and key: return {**o, key:value}
    return value

def put_json(folder, path, at, way, value, key):
    if path.suffix!='.json': return put_bytes(folder, path, at, way, value, key)
    try: path.write_text(json.dumps(changed(json.loads(path.read_bytes()), way, value, key)))
    except ValueError: path.write_bytes(b'{')

def put_bytes(folder, path, at, way, value, key):
    data = path.read_bytes()
    i,kind = at%(len(data)+1),len(way)
    new = bytes([at%256])*(1+at%9)
    path.write_bytes([data[:i], data[:i]+new+data[i+len(new):], data[:i]+new+data[i:], data+new, new, b''][kind%6])

def put_tensor(folder, path, at, way, value, key):
    path = folder/'model.safetensors'
    if not path.is_file(): return # a pipe would be waited for
    try: state = load_file(path)
    except Exception: return
    k = list(state)[at%len(state)]
    v,rest = state[k],{n:o for n,o in state.items() if n!=k}
    options = [{**rest, k:v.flatten()[:-1]}, rest, {**rest, k+'x':v}, {**state, 'x':v}, {**rest, k:v.to(torch.int8)}, {**rest, k:v.half()}, {**rest, k:v.double()},
               {**rest, k:torch.full(v.shape, float('nan'))}, {**rest, k:torch.zeros(0)}, {**rest, k:v[None]}, {**rest, k:v.to(torch.complex64)}, {**rest, '../'+k:v}]
    save_file({n:o.clone().contiguous() for n,o in options[sum(way)%len(options)].items()}, path)

def put_other(folder, path, at, way, value, key):
    "Not a file, or one more file"
    kind = at%7
    if kind<4:
        path.unlink()
        if kind==0: path.symlink_to(folder.parent/'outside.json')
        if kind==1: os.mkfifo(path)
        if kind==2: path.mkdir()
        return
    name = ['adapter_config.json', 'model.safetensors.index.json', 'vocab.txt', 'tokenizer.model', 'pytorch_model.bin', '.hidden', 'x.py', 'sub/config.json'][sum(way)%8]
    (folder/name).parent.mkdir(exist_ok=True)
    (folder/name).write_bytes(pickle.dumps(Canary('ran')) if kind==4 else json.dumps({key or 'a':value}).encode())

def mutation(rng):
    "What a change does, to which file, at which place, along which keys, with which value and key"
    return (rng.choice([put_json]*5+[put_bytes, put_tensor, put_tensor, put_other]), rng.randrange(2**16), rng.randrange(2**16),
            [rng.randrange(31) for _ in range(rng.randrange(6))], rng.choice(VALUES), rng.choice([None, *KEYS]))

def disturb(folder, changes, own):
    "Apply mutations, and with `own` let the hashes fit"
    for f,which,at,way,value,key in changes:
        files = sorted(p for p in folder.rglob('*') if p.is_file() and not p.is_symlink())
        if files: f(folder, files[which%len(files)], at, way, value, key)
    if own and (folder/'sft.json').is_file(): # a pipe would be waited for
        with contextlib.suppress(Exception): rehash(folder)

def tree(folder):
    "Everything below a folder: name -> kind, size, time of the last change"
    return {str(p.relative_to(folder)):(p.lstat().st_mode, p.lstat().st_size, p.lstat().st_mtime_ns) for p in sorted(folder.rglob('*'))}

def attack(base, at, changes, own, run):
    "Run a command on a changed copy: it succeeds or refuses in one line, and nothing around it is touched"
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(base, at/'model')
    (at/'outside.json').write_text('{}')
    disturb(at/'model', changes, own)
    before = tree(at)
    with contextlib.chdir(at): code,err = run(at/'model')
    assert code in (0, 2), err
    assert 'Traceback' not in err
    if code==2: assert len(err.splitlines())==1 and err.startswith('sft_nb'), err
    assert tree(at)==before
    return code

def fuzz(made, task, tmp_path_factory, n):
    folder,item,ckpt = made[task]
    at,seen = tmp_path_factory.mktemp('fuzz')/'x',{0:0, 2:0}
    def predict(d): return cli('predict', d, item, '--device', 'cpu')
    def build(d):
        try:
            c = open_checkpoint(d)
            c.timm_model() if c.kind=='timm' else (c.hf_model('AutoModel'), c.tokenizer())
        except SftError as e: return 2,f'sft_nb: {" ".join(str(e).split())}'
        return 0,''
    rng = random.Random(0)
    for _ in range(n):
        changes,own = [mutation(rng) for _ in range(rng.randint(1, 3))],rng.random()<.5
        base,run = (ckpt, build) if rng.randrange(4)==0 else (folder, predict)
        try: seen[attack(base, at, changes, own, run)] += 1
        except Exception as e: raise AssertionError(f'{base.name}, {changes}, own={own}') from e
    print(f'{task}: {sum(seen.values())} changed folders, {seen[2]} refused in one line, {seen[0]} opened; no crash, nothing touched outside')
    assert sum(seen.values())==n and seen[2]>n/3 and seen[0]>0

@pytest.mark.parametrize('task', ITEMS)
def test_changed_folders(made, task, tmp_path_factory): fuzz(made, task, tmp_path_factory, 60)

@pytest.mark.slow
@pytest.mark.parametrize('task', ITEMS)
def test_many_changed_folders(made, task, tmp_path_factory): fuzz(made, task, tmp_path_factory, 600)

# Other files: marks, tables

LINES = [b'{"do":"relabel","item":"a","label":"b"}', b'{"do":"exclude"}', b'{"do":"relabel","item":["a"]}', b'{"do":"undo"}', b'{"do":"redo","item":3}', b'{"do":"clear","item":null}',
         b'{"do":["undo"]}', b'{"do":"relabel","item":"a","label":{"__reduce__":"os.system"}}', b'['*9000, b'{"do":"relabel","item":"a","note":1e999}', b'null', b'\x80\x04.', b'\xff\xfe']

def test_marks_of_any_content(tmp_path, monkeypatch):
    "Read, or refused with the line; never run, never changed"
    monkeypatch.chdir(tmp_path)
    rng,path,read = random.Random(0),tmp_path/'marks.jsonl',0
    for _ in range(200):
        lines = [rng.choice([*LINES, rng.randbytes(rng.randrange(31)), pickle.dumps(Canary('ran'))]) for _ in range(rng.randrange(6))]
        path.write_bytes(before := b'\n'.join(lines)+b'\n')
        try: marks = Marks(path)
        except FolderError as e: assert str(path) in str(e) and 'line ' in str(e), lines
        else: read += bool(repr(marks)) and marks.table() is not None and marks.items() is not None
        assert path.read_bytes()==before and not Path('ran').exists(), lines
    assert 0<read<200

@pytest.mark.parametrize('lazy', [False, True])
def test_tables_of_any_content(tmp_path, home, lazy, monkeypatch):
    "A Parquet file with changed bytes is read, or refused with its name; a pickle in a cell stays bytes"
    monkeypatch.chdir(tmp_path)
    pd.DataFrame(dict(text=[f'fine day {i}' for i in range(40)], label=['a','b']*20, more=[pickle.dumps(Canary('ran'))]*40)).to_parquet('good.parquet')
    good,rng,seen = (tmp_path/'good.parquet').read_bytes(),random.Random(0),{True:0, False:0}
    for i in range(120):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)): data[rng.randrange(len(data))] = rng.randrange(256)
        if i%10==0: del data[rng.randrange(len(data)):]
        (tmp_path/f'{i}.parquet').write_bytes(data if i else good)
        try: list(read_rows(tmp_path/f'{i}.parquet', 'text', lazy=lazy).text)
        except SftError as e: assert f'{i}.parquet' in str(e)
        else: seen[True] += 1
        seen[False] += 1
    assert 0<seen[True]<seen[False]==120 and not (tmp_path/'ran').exists()
