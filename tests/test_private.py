"Private parts of other libraries: each is used in one place, and a test says which version of the library it is gone from or behaves otherwise in"
import ast, copy, gettext, inspect, json, platform, re, struct
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
import pytest, timm, torch, transformers
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn
from sft_nb.checkpoints.weights import attention_name, save_timm_config
from sft_nb.core.metrics import _corpus_sums
from sft_nb.models.grouping import RUNNING_NORMS
from sft_nb.models.kernels import _conv_act, _in_order, _is_hooked
from sft_nb.models.model import _mark
from sft_nb.models.speech_model import CTCModel
from sft_nb.models.timm_model import _vit_stem
from sft_nb.tasks.demo_data import _messages
from sft_nb.training.callbacks import has_bfloat16
from sft_nb.training.distributed import _inner_loader_for, _is_compiled
from sft_nb.training.guards import _epoch_order
from sft_nb.training.learner import SFTLearner

root = Path(__file__).resolve().parents[1]

# Where (module.function) -> library, private names
PRIVATE = {
    'training.guards._epoch_order': ('fastai', {'_DataLoader__idxs'}),
    'training.learner._do_fit': ('fastai', {'_with_events', '_do_epoch'}),
    'training.callbacks.has_bfloat16': ('torch', {'_is_mkldnn_bf16_supported'}),
    'training.distributed._is_compiled': ('torch', {'_compiled_call_impl'}),
    'models.model._mark': ('torch', {'_version'}),
    'models.kernels._is_hooked': ('torch', {'_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks'}),
    'models.kernels._conv_act': ('torch', {'_convolution_pointwise'}),
    'models.kernels._in_order': ('torch', {'_C', '_nn'}),
    'models.timm_model._vit_stem': ('timm', {'_pos_embed'}),
    'checkpoints.weights.save_timm_config': ('timm', {'timm.models._hub'}),
    'models.speech_model.hidden': ('transformers', {'_mask_hidden_states'}),
    'checkpoints.weights.attention_name': ('transformers', {'_attn_implementation'}),
    'core.metrics._corpus_sums': ('sacrebleu', {'_extract_corpus_statistics', '_compute_score_from_stats'}),
    'tasks.demo_data._messages': ('Python', {'_catalog'}),
}
# No private name, but what fastai does not promise: how the loader inside a loader is made
UNPROMISED = {'training.distributed._inner_loader_for': ('fastai', {'fake_l'})}

def private(o): return isinstance(o, str) and re.fullmatch(r'_[A-Za-z]\w*', o)

def own_names(trees):
    "Names that the package itself defines or assigns"
    nodes = [o for t in trees for o in ast.walk(t)]
    made = {o.name for o in nodes if isinstance(o, (ast.FunctionDef, ast.ClassDef))}
    made |= {o.id for o in nodes if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)}
    return made | {o.attr for o in nodes if isinstance(o, ast.Attribute) and isinstance(o.ctx, ast.Store)}

def names_used(f):
    "Private names that a function reads of anything, by attribute, by getattr and the like, or by import"
    for o in ast.walk(f):
        if isinstance(o, ast.Attribute) and private(o.attr): yield o.attr
        if isinstance(o, ast.Call) and getattr(o.func, 'id', getattr(o.func, 'attr', None)) in ('getattr', 'hasattr', 'get'):
            yield from (a.value for a in o.args if isinstance(a, ast.Constant) and private(a.value))
        if isinstance(o, ast.ImportFrom) and not o.level and not o.module.startswith('sft_nb') and any(map(private, o.module.split('.'))): yield o.module
        if isinstance(o, ast.ImportFrom) and not o.level and not o.module.startswith('sft_nb'): yield from (a.name for a in o.names if private(a.name))

def test_each_private_part_is_used_in_one_place():
    paths = [p for p in sorted((root/'sft_nb').rglob('*.py')) if p.name!='_modidx.py']
    trees = {'.'.join(p.relative_to(root/'sft_nb').with_suffix('').parts):ast.parse(p.read_text(encoding='utf8')) for p in paths}
    own,found = own_names(trees.values()),{}
    for module,tree in trees.items():
        parts = [(f'{module}.{o.name}', o) for o in ast.walk(tree) if isinstance(o, ast.FunctionDef)]
        loose = ast.Module([o for o in tree.body if not isinstance(o, (ast.FunctionDef, ast.ClassDef))], [])
        for where,o in [*parts, (module, loose)]:
            if names := {n for n in names_used(o) if n not in own}: found[where] = found.get(where, set())|names
    assert found=={k:names for k,(_,names) in PRIVATE.items()}, 'a private part of a library that no test watches: put it behind one function, and add it to PRIVATE and CHECKS'

def same_order():
    dl = DataLoader(range(5), bs=2, shuffle=True)
    assert _epoch_order(dl) is None
    assert torch.cat(list(dl)).tolist()==list(_epoch_order(dl))

def epochs_from_the_first():
    data = list(zip(torch.ones(4, 1), torch.ones(4, 1)))
    learn,seen = Learner(DataLoaders(DataLoader(data, bs=2), DataLoader(data, bs=2)), nn.Linear(1, 1), loss_func=nn.MSELoss()),[]
    learn.state,learn._do_fit = SimpleNamespace(first_epoch=1),partial(SFTLearner._do_fit, learn)
    learn._do_epoch = lambda: seen.append(learn.epoch)
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    assert seen==[1, 2] and 'all_batches' in inspect.getsource(Learner._do_epoch_train)

def copied_loader():
    old = DataLoader(range(6), bs=2)
    new = copy.copy(old)
    new.bs,new.fake_l = 3,_inner_loader_for(new)
    assert [len(b) for b in new]==[3, 3] and [len(b) for b in old]==[2, 2, 2]

def compiling_shows():
    net = nn.Linear(1, 1)
    assert not _is_compiled(net)
    net.compile(backend='eager')
    assert _is_compiled(net)

def processor_answers(): assert isinstance(has_bfloat16('cpu'), bool)

def weights_are_marked():
    net = nn.Linear(2, 1)
    was = _mark(net)
    net(torch.ones(1, 2))
    assert _mark(net)==was
    with torch.no_grad(): net.bias.add_(1)
    assert _mark(net)!=was

def hooks_are_seen():
    for kind in ('forward_hook', 'forward_pre_hook', 'full_backward_hook', 'full_backward_pre_hook'):
        net = nn.Linear(1, 1)
        assert not _is_hooked(net)
        getattr(net, f'register_{kind}')(lambda *_: None)
        assert _is_hooked(net), kind

def activation_behind_a_convolution():
    conv,x = nn.Conv2d(3, 4, 3, padding=1),torch.randn(2, 3, 8, 8)
    with torch.no_grad(): assert torch.allclose(_conv_act(x, conv.weight, (1, 1), conv, 'hardtanh', [0., 1.]), nn.functional.hardtanh(conv(x), 0., 1.), atol=1e-5)

def weight_in_another_order():
    conv,x = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False),torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    weight = _in_order(conv.weight, (1, 1), conv, x.shape)
    assert weight.is_mkldnn and torch.allclose(_conv_act(x, weight, (1, 1), conv, 'none', []), conv(x), atol=1e-5)

def positions_of_a_vit():
    net,x = timm.create_model('test_vit', pretrained=False).eval(),torch.randn(1, 3, 160, 160)
    with torch.no_grad(): assert torch.equal(net.norm(net.blocks(_vit_stem(SimpleNamespace(net=net), x))), net.forward_features(x))

def config_of_timm(tmp_path):
    data = dict(input_size=(3, 96, 96), mean=(.1, .2, .3), std=(1., 1., 1.), interpolation='bilinear', crop_pct=1.)
    net = timm.create_model('test_vit', pretrained=False, num_classes=3, img_size=96)
    if not hasattr(net, '_model_args'): net._model_args = dict(img_size=96)
    save_timm_config(net, tmp_path/'config.json', data, ['a', 'b', 'c'])
    config = json.loads((tmp_path/'config.json').read_text())
    assert (config['architecture'], config['num_classes'], config['label_names'])==('test_vit', 3, ['a', 'b', 'c'])
    again = timm.create_model(config['architecture'], pretrained=False, **{**config['model_args'], 'num_classes':3})
    assert config['pretrained_cfg']['mean']==[.1, .2, .3] and again.pos_embed.shape==net.pos_embed.shape

def masked_frames():
    config = transformers.Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8,), conv_kernel=(3,), conv_stride=(2,),
                                         num_feat_extract_layers=1, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, mask_time_prob=.5, mask_time_length=2)
    body,x,on = transformers.Wav2Vec2Model(config),torch.randn(2, 20, 16),torch.ones(2, 20, dtype=torch.bool)
    assert torch.equal(body.eval()._mask_hidden_states(x.clone(), attention_mask=on), x)
    assert not torch.equal(body.train()._mask_hidden_states(x.clone(), attention_mask=on), x)
    assert "hasattr(self.body, '_mask_hidden_states')" in inspect.getsource(CTCModel.hidden)

def chosen_attention():
    small = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    for how in ('eager', 'sdpa'):
        assert attention_name(transformers.BertModel._from_config(transformers.BertConfig(**small), attn_implementation=how).config)==how
    assert attention_name(None) is None

def sums_of_sacrebleu():
    import sacrebleu
    target,prediction = ['a cat sat on the mat', 'two dogs ran far away'],['a cat sat on a mat', 'two dogs ran away']
    for name,metric in dict(bleu=sacrebleu.BLEU(), chrf=sacrebleu.CHRF()).items():
        part = _corpus_sums(metric, name, target, prediction)
        assert len(part.sums)==2
        assert part.score(torch.tensor(part.sums).sum(0).tolist())[name]==pytest.approx(metric.corpus_score(prediction, [target]).score)

def catalog_of_gettext(tmp_path):
    head,one,two = b'Content-Type: text/plain; charset=UTF-8\n','_Open'.encode(),'_Öffnen'.encode()
    at = 28+2*16
    places,pieces = [],b''
    for o in (b'', one, head, two):
        places.append((len(o), at+len(pieces)))
        pieces += o+b'\0'
    mo = struct.pack('<7I', 0x950412de, 0, 2, 28, 28+16, 0, 0)+b''.join(struct.pack('<2I', *o) for o in places)+pieces
    (tmp_path/'one.mo').write_bytes(mo)
    with open(tmp_path/'one.mo', 'rb') as f: assert gettext.GNUTranslations(f).gettext('_Open')=='_Öffnen'
    assert _messages(tmp_path/'one.mo')['_Open']=='_Öffnen'

CHECKS = {'training.guards._epoch_order':same_order, 'training.learner._do_fit':epochs_from_the_first, 'training.callbacks.has_bfloat16':processor_answers,
          'training.distributed._is_compiled':compiling_shows,
          'models.model._mark':weights_are_marked, 'models.kernels._is_hooked':hooks_are_seen, 'models.kernels._conv_act':activation_behind_a_convolution,
          'models.kernels._in_order':weight_in_another_order,
          'models.timm_model._vit_stem':positions_of_a_vit,
          'checkpoints.weights.save_timm_config':config_of_timm, 'models.speech_model.hidden':masked_frames, 'checkpoints.weights.attention_name':chosen_attention,
          'core.metrics._corpus_sums':sums_of_sacrebleu, 'tasks.demo_data._messages':catalog_of_gettext, 'training.distributed._inner_loader_for':copied_loader}

def watched(where, check):
    "Run a check; where it fails, say which library and version, and what to change"
    library,names = {**PRIVATE, **UNPROMISED}[where]
    try: check()
    except Exception as e:
        now = platform.python_version() if library=='Python' else version(library)
        pytest.fail(f"{library} {now}: {', '.join(sorted(names))} is gone or behaves otherwise ({type(e).__name__}: {e}). Change sft_nb.{where}, the only place that uses it.")

@pytest.mark.parametrize('where', CHECKS)
def test_private_parts_are_as_expected(where, tmp_path):
    check = CHECKS[where]
    watched(where, partial(check, tmp_path) if 'tmp_path' in inspect.signature(check).parameters else check)

def test_every_private_part_is_watched(): assert CHECKS.keys()==PRIVATE.keys()|UNPROMISED.keys()

def test_a_part_that_is_gone_is_named():
    with pytest.raises(pytest.fail.Exception, match=rf"fastai {re.escape(version('fastai'))}: _DataLoader__idxs is gone or behaves otherwise .*Change sft_nb.training.guards._epoch_order"):
        watched('training.guards._epoch_order', lambda: DataLoader(range(2))._idxs)

def test_norms_with_running_numbers_are_all_known():
    made = {n:o for n,o in vars(nn).items() if re.fullmatch(r'(Sync)?(Batch|Instance)Norm(\dd)?', n)}
    assert set(made.values())==set(RUNNING_NORMS), f"torch {version('torch')} has other norms than RUNNING_NORMS: {', '.join(made)}"
