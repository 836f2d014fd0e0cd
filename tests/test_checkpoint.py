"Checkpoints: references of every kind, and each way in which one can be wrong"
import json, os, shutil, subprocess, sys, time
from pathlib import Path
import pytest, timm, torch, transformers
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from sft_nb.core.basics import CheckpointError, sha256_file
from sft_nb.checkpoints.weights import Checkpoint
from sft_nb.checkpoints.references import list_checkpoints, open_checkpoint


@pytest.fixture(scope='session')
def timm_folder(tmp_path_factory):
    "A folder as timm saves it"
    folder = tmp_path_factory.mktemp('timm')/'small'
    torch.manual_seed(0)
    save_for_hf(timm.create_model('test_resnet', num_classes=3), folder, safe_serialization=True)
    (folder/'README.md').write_text('---\nlicense: mit\n---\n')
    return folder


@pytest.fixture(scope='session')
def hf_folder(tmp_path_factory):
    "A folder as transformers saves it"
    folder = tmp_path_factory.mktemp('hf')/'small'
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, max_position_embeddings=40)
    transformers.BertModel(config).save_pretrained(folder)
    (folder/'vocab.txt').write_text('\n'.join('[PAD] [UNK] [CLS] [SEP] [MASK] a b c'.split()))
    (folder/'tokenizer_config.json').write_text(json.dumps(dict(tokenizer_class='BertTokenizer', model_max_length=32)))
    (folder/'README.md').write_text('---\nlanguage: en\nlicense: apache-2.0\n---\n')
    return folder


@pytest.fixture
def copy(tmp_path):
    return lambda folder: Path(shutil.copytree(folder, tmp_path/'copy'))


@pytest.fixture
def hub(monkeypatch):
    "The hub answers with a folder, or an error"
    def answer(what):
        calls = []
        def snapshot_download(repo, **kw):
            calls.append((repo, kw))
            if isinstance(what, Exception): raise what
            return str(what)
        monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
        return calls
    return answer


def error(cls): return cls.__new__(cls)


@pytest.mark.parametrize('ref', ['pip:efficientnet-lite0', 'efficientnet-lite0'])
def test_packaged_image(ref):
    c = open_checkpoint(ref, 'image')
    assert (c.ref, c.kind, c.arch, c.params, c.bytes) == ('pip:efficientnet-lite0', 'timm', 'tf_efficientnet_lite0', 4_652_008, 18_826_032)
    assert c.sha256.startswith('579344248a93') and c.license=='Apache-2.0'
    assert json.loads(json.dumps(c.preprocess))==c.preprocess
    m = c.timm_model(num_classes=5, drop_rate=.1)
    assert m.num_classes==5 and 'state_dict' not in m.pretrained_cfg
    assert torch.equal(m.conv_stem.weight, c.timm_model().conv_stem.weight)


def test_packaged_text():
    c = open_checkpoint('all-minilm-l6-v2', 'text')
    assert c.sha256.startswith('53aa51172d14') and c.preprocess==dict(max_length=256, pooling='mean')
    m = c.hf_model(transformers.AutoModelForSequenceClassification, num_labels=4)
    assert m.config.num_labels==4 and m.dtype==torch.float32
    assert c.tokenizer()('hello')['input_ids'][0]==101


def test_packaged_weights_that_were_changed(tmp_path, monkeypatch):
    shutil.copytree(open_checkpoint('efficientnet-lite0').folder, tmp_path/'assets'/'efficientnet-lite0-0.1.0')
    monkeypatch.setenv('SFT_NB_HOME', str(tmp_path))
    file = next((tmp_path/'assets').rglob('*.pth'))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match='was changed after it was fetched.*Delete'): open_checkpoint('efficientnet-lite0')


def test_timm_without_weights_needs_no_network(monkeypatch):
    monkeypatch.setattr('socket.socket.connect', lambda *a: pytest.fail('no network may be used'))
    c = open_checkpoint('resnet18', 'image', pretrained=False)
    assert (c.ref, c.params, c.sha256, c.bytes) == ('timm:resnet18', 11_689_512, None, None)
    assert c.timm_model(num_classes=2).fc.out_features==2
    assert open_checkpoint('efficientnet-lite0', pretrained=False).timm_model().num_classes==1000


def test_timm_with_weights_from_the_hub(hub, timm_folder, tmp_path):
    save_file(timm.create_model('test_resnet').state_dict(), tmp_path/'model.safetensors')
    calls = hub(tmp_path)
    c = open_checkpoint('timm:test_resnet')
    assert calls[0][0]=='timm/test_resnet.r160_in1k' and c.sha256==sha256_file(tmp_path/'model.safetensors')
    assert c.preprocess['mean']==list(timm.get_pretrained_cfg('test_resnet').mean) and c.preprocess['size']==160
    m = c.timm_model(num_classes=7)
    assert torch.equal(m.layer1[0].conv1.weight, load_file(tmp_path/'model.safetensors')['layer1.0.conv1.weight'])


@pytest.mark.parametrize('ref,repo,revision', [('hf:timm/small', 'timm/small', None), ('timm/small@v2', 'timm/small', 'v2'),
                                               ('hf:timm/small@ab/c', 'timm/small', 'ab/c')])
def test_hub_folder(hub, timm_folder, ref, repo, revision):
    calls = hub(timm_folder)
    c = open_checkpoint(ref, 'image')
    assert (c.kind, c.license, c.ref)==('timm', 'mit', 'hf:'+ref.removeprefix('hf:'))
    name,kw = calls[0]
    assert (name, kw['revision'])==(repo, revision)
    assert 'model.safetensors' in kw['allow_patterns'] and not any(o.endswith(('.bin', '.py', '.pt')) for o in kw['allow_patterns'])
    calls = hub(timm_folder)
    open_checkpoint(ref, pretrained=False)
    assert not any('safetensors' in o for o in calls[0][1]['allow_patterns'])


@pytest.mark.parametrize('problem,words', [
    (error(hub_errors.RepositoryNotFoundError), "no public repository 'a/b'"), (error(hub_errors.RevisionNotFoundError), "a/b has no revision 'v9'"),
    (error(hub_errors.GatedRepoError), 'hf auth login'), (error(hub_errors.LocalEntryNotFoundError), 'No network'), (OSError('down'), 'No network'),
    (error(hub_errors.OfflineModeIsEnabled), 'unset HF_HUB_OFFLINE.*pip:efficientnet-lite0.*local folder.*--from-scratch')])
def test_hub_errors(hub, monkeypatch, problem, words):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    hub(problem)
    with pytest.raises(CheckpointError, match=words): open_checkpoint('hf:a/b@v9')


def test_hub_that_cannot_be_reached(tmp_path):
    "The real client, pointed at a closed port, in a process of its own; it says so soon"
    env = {**os.environ, 'HF_ENDPOINT':'http://127.0.0.1:9', 'HF_HOME':str(tmp_path), 'HF_HUB_OFFLINE':'0'}
    code = ("from sft_nb.checkpoints.references import *\nfor r in ('timm:resnet18', 'hf:a/b'):\n"
            " try: open_checkpoint(r)\n except Exception as e: print(type(e).__name__, e)")
    start = time.time()
    out = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True).stdout.splitlines()
    assert [o.startswith('CheckpointError No network') for o in out]==[True, True] and time.time()-start<90


def test_timm_folder(timm_folder):
    for ref in (timm_folder, str(timm_folder)):
        c = open_checkpoint(ref, 'image')
        assert (c.kind, c.arch, c.folder, c.license)==('timm', 'test_resnet', timm_folder, 'mit')
    x = torch.randn(2,3,64,64)
    want = timm.create_model(f'local-dir:{timm_folder}', pretrained=True).eval()
    assert torch.equal(c.timm_model().eval()(x), want(x)) and c.timm_model().num_classes==3
    assert c.params==sum(p.numel() for p in want.parameters())
    assert c.timm_model(num_classes=9).fc.out_features==9
    assert not torch.equal(c.timm_model(pretrained=False).conv1[0].weight, want.conv1[0].weight)


def test_timm_folder_with_pth(timm_folder, copy):
    folder = copy(timm_folder)
    torch.save(load_file(folder/'model.safetensors'), folder/'model.pth')
    (folder/'model.safetensors').unlink()
    assert torch.equal(open_checkpoint(folder).timm_model().fc.weight, open_checkpoint(timm_folder).timm_model().fc.weight)


class Canary:
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')


def test_a_pickle_is_not_opened(timm_folder, copy, tmp_path):
    folder = copy(timm_folder)
    (folder/'model.safetensors').unlink()
    torch.save({'fc.weight': Canary(tmp_path/'ran')}, folder/'model.pth')
    with pytest.raises(CheckpointError, match='model.pth was not opened'): open_checkpoint(folder).timm_model()
    assert not (tmp_path/'ran').exists()


def test_hf_folder(hf_folder):
    c = open_checkpoint(hf_folder, 'text')
    assert (c.kind, c.arch, c.license, c.preprocess)==('hf', 'bert', 'apache-2.0', dict(max_length=32, pooling=None))
    m = c.hf_model('AutoModel')
    assert c.params==sum(p.numel() for p in m.parameters()) and c.sha256==sha256_file(hf_folder/'model.safetensors')
    assert c.tokenizer()('a b')['input_ids']==[2,5,6,3]
    fresh = open_checkpoint(hf_folder, pretrained=False)
    assert fresh.sha256 is None and not torch.equal(fresh.hf_model('AutoModel').embeddings.word_embeddings.weight, m.embeddings.word_embeddings.weight)
    assert fresh.hf_model('AutoModelForSequenceClassification', num_labels=5).config.num_labels==5


def test_hf_shards(hf_folder, tmp_path):
    transformers.AutoModel.from_pretrained(hf_folder).save_pretrained(tmp_path, max_shard_size='4KB')
    c = open_checkpoint(tmp_path)
    assert len(c.weights)>1 and len(c.sha256)==64 and c.hf_model('AutoModel') is not None


def test_hf_weights_of_another_model(hf_folder, copy):
    folder = copy(hf_folder)
    save_file({'wrong.weight': torch.ones(2)}, folder/'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(CheckpointError, match='lack .* tensors of BertModel.*belong to another model'): open_checkpoint(folder).hf_model('AutoModel')


def test_hf_pickle_alone(hf_folder, copy, tmp_path):
    folder = copy(hf_folder)
    (folder/'model.safetensors').unlink()
    torch.save({'a': Canary(tmp_path/'ran')}, folder/'pytorch_model.bin')
    with pytest.raises(CheckpointError, match='no model.safetensors .pytorch_model.bin is a pickle, which is not opened.'): open_checkpoint(folder)
    assert open_checkpoint(folder, pretrained=False).params and not (tmp_path/'ran').exists()


def test_code_in_a_folder_is_not_run(hf_folder, copy, tmp_path):
    folder = copy(hf_folder)
    (folder/'evil.py').write_text(f"open({str(tmp_path/'ran')!r}, 'w')")
    config = json.loads((folder/'config.json').read_text())
    auto = {'AutoConfig':'evil.C', 'AutoModel':'evil.M'}
    (folder/'config.json').write_text(json.dumps({**config, 'auto_map':auto}))
    assert open_checkpoint(folder).hf_model('AutoModel') is not None
    (folder/'config.json').write_text(json.dumps({**config, 'model_type':'evil', 'auto_map':auto}))
    with pytest.raises(CheckpointError, match="model_type 'evil', which this transformers does not know.*is not run"): open_checkpoint(folder)
    assert not (tmp_path/'ran').exists()


@pytest.mark.parametrize('kind', ['timm_folder', 'hf_folder'])
@pytest.mark.parametrize('harm,words', [('truncate', 'is damaged'), ('garbage', 'is damaged'), ('empty', 'holds no tensors'),
                                        ('missing', 'holds no model.safetensors'), ('config', 'cannot be read as JSON'),
                                        ('list', 'not an object'), ('no config', 'holds no config.json')])
def test_damaged_folders(request, copy, kind, harm, words):
    folder = copy(request.getfixturevalue(kind))
    weights,config = folder/'model.safetensors', folder/'config.json'
    if harm=='truncate': weights.write_bytes(weights.read_bytes()[:-100])
    elif harm=='garbage': weights.write_bytes(b'garbage'*100)
    elif harm=='empty': save_file({}, weights)
    elif harm=='missing': weights.unlink()
    elif harm=='config': config.write_text('{"a": ')
    elif harm=='list': config.write_text('[]')
    else: config.unlink()
    with pytest.raises(CheckpointError, match=words): open_checkpoint(folder)


def test_configs_that_fit_nothing(timm_folder, copy):
    folder = copy(timm_folder)
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps({**config, 'architecture':'resnte18'}))
    with pytest.raises(CheckpointError, match="architecture 'resnte18', which timm lacks. Did you mean 'resnet18'"): open_checkpoint(folder)
    (folder/'config.json').write_text(json.dumps({**config, 'architecture':'test_vit'}))
    with pytest.raises(CheckpointError, match='could not be built by timm'): open_checkpoint(folder).timm_model()
    (folder/'config.json').write_text(json.dumps({**config, 'model_args':dict(no_such=1)}))
    with pytest.raises(CheckpointError, match='timm cannot build'): open_checkpoint(folder)


@pytest.mark.parametrize('ref,words', [
    ('resnte18', 'Did you mean timm:resnet18'), ('minilm', 'Did you mean pip:all-minilm-l6-v2'), ('timm:resnte18', "Did you mean 'resnet18'"),
    ('tim:resnet18', 'Did you mean timm:resnet18.*Valid: timm:NAME, hf:REPO'), ('pip:minilm', "Did you mean 'all-minilm-l6-v2'"), ('timm:', 'names nothing'),
    ('./nowhere', 'There is no folder'), ('/nowhere/at/all', 'There is no folder'), ('', 'There is no checkpoint'), ('qqqqqqqq', 'Valid: timm:NAME'),
    ('timm:resnet18.no_tag', "no weights 'no_tag'"), ('timm:test_resnet_nope', 'has no architecture')])
def test_names(ref, words):
    with pytest.raises(CheckpointError, match=words): open_checkpoint(ref)


def test_weights_that_timm_lacks():
    name = next(o for o in timm.list_models() if not timm.get_pretrained_cfg(o) or not timm.get_pretrained_cfg(o).has_weights)
    with pytest.raises(CheckpointError, match='has no weights for.*--from-scratch'): open_checkpoint(f'timm:{name}')


def test_task_fit(timm_folder, hf_folder):
    with pytest.raises(CheckpointError, match="does not fit task 'text'. It fits: image.*pip:all-minilm-l6-v2"): open_checkpoint(timm_folder, 'text')
    with pytest.raises(CheckpointError, match="does not fit task 'image'.*pip:efficientnet-lite0"): open_checkpoint(hf_folder, 'image')
    c = open_checkpoint(timm_folder)
    assert open_checkpoint(c, 'image') is c


ENC_DEC = dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8, encoder_attention_heads=2, decoder_attention_heads=2,
               pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, vocab_size=9)
VIT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


@pytest.mark.parametrize('config,processor,task,preprocess', [
    (transformers.MarianConfig(**ENC_DEC, max_position_embeddings=64), {}, 'translation', dict(max_length=64, pooling=None)),
    (transformers.WhisperConfig(**ENC_DEC), dict(sampling_rate=8000), 'speech', dict(sampling_rate=8000)),
    (transformers.ViTConfig(**VIT, image_size=32), dict(size=dict(height=32, width=32), resample=2), 'image',
     dict(size=32, mean=[.5]*3, std=[.5]*3, interpolation='bilinear', crop_pct=1.0))])
def test_tasks_of_hf_models(tmp_path, config, processor, task, preprocess):
    config.save_pretrained(tmp_path)
    (tmp_path/'preprocessor_config.json').write_text(json.dumps(processor))
    c = open_checkpoint(tmp_path, task, pretrained=False)
    assert c.params>0 and preprocess.items()<=c.preprocess.items()


def test_preprocess_with_a_center_crop(tmp_path):
    transformers.ViTConfig(**VIT, image_size=28).save_pretrained(tmp_path)
    (tmp_path/'preprocessor_config.json').write_text(json.dumps(dict(size=dict(shortest_edge=32), crop_size=dict(height=28, width=28), resample=3)))
    p = open_checkpoint(tmp_path, pretrained=False).preprocess
    assert (p['size'], p['crop_pct'], p['interpolation'])==(28, .875, 'bicubic')


def test_wrong_library(timm_folder, hf_folder):
    t,h = open_checkpoint(timm_folder), open_checkpoint(hf_folder)
    with pytest.raises(CheckpointError, match='Use timm_model'): t.hf_model('AutoModel')
    with pytest.raises(CheckpointError, match='no tokenizer'): t.tokenizer()
    with pytest.raises(CheckpointError, match='Use hf_model'): h.timm_model()
    with pytest.raises(CheckpointError, match='could not be built as AutoModelForImageClassification'): h.hf_model('AutoModelForImageClassification')


def test_list_fetches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv('SFT_NB_HOME', str(tmp_path))
    t = list_checkpoints()
    assert list(t.columns)==['ref', 'task', 'params', 'size_mb', 'license', 'here'] and not t.here.any() and not list(tmp_path.iterdir())


def test_the_record_is_plain(timm_folder):
    c = open_checkpoint(timm_folder)
    assert isinstance(c, Checkpoint) and json.loads(json.dumps([c.ref, c.arch, c.tasks, c.preprocess, c.sha256])) and str(timm_folder) in repr(c)
