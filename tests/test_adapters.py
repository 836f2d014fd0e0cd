"Adapters on timm and transformers networks: what trains, the same outputs after merging, saving and opening in plain peft"
import copy, json
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from safetensors.torch import load_file
from sft_nb.core.basics import FolderError, GroupError
from sft_nb.data.task import get_task
from sft_nb.data.load import load_data
from sft_nb.models.grouping import sequential_groups
from sft_nb.models.model import SFTModel
from sft_nb.models.freeze import layer_order
from sft_nb.training.learner import freeze_to, layer_table, sft_learner, SFTLearner
from sft_nb.training.cache import cache_border, cache_key, first_trainable
from sft_nb.training.adapters import adaptable_layers, AdapterError, ADAPTERS, add_adapter, merge_adapter, save_adapter
from sft_nb.tasks.toys import make_toy

peft = pytest.importorskip('peft')
transformers = pytest.importorskip('transformers')
torch.set_num_threads(1)

PICTURES = {'timm:test_vit':80, 'timm:test_resnet':64, 'timm:test_efficientnet':64, 'timm:test_convnext':64}

def pictures(folder, checkpoint='timm:test_vit', **kw):
    toy = make_toy('image', folder)
    dls = load_data('image', toy['source'], checkpoint=checkpoint, pretrained=False, batch_size=4, **{**toy['load'], 'size':PICTURES[checkpoint]})
    return sft_learner(dls, **kw)

SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=40, max_position_embeddings=24, num_labels=3)
CONFIGS = dict(bert=lambda: transformers.BertConfig(**SMALL), roberta=lambda: transformers.RobertaConfig(**SMALL, pad_token_id=0),
    distilbert=lambda: transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=40, max_position_embeddings=24, num_labels=3),
    gpt2=lambda: transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=24, num_labels=3, pad_token_id=0),
    modernbert=lambda: transformers.ModernBertConfig(**SMALL, pad_token_id=0, cls_token_id=1, sep_token_id=2, attn_implementation='eager'))

class Classifier(SFTModel):
    "A transformers classifier: token numbers -> logits"
    def features(self, x): return self.net(input_ids=x).logits

def network(name):
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(CONFIGS[name]()).eval()

def texts(name, **kw):
    "A learner over token numbers"
    net = network(name)
    head = [n for n in ('pre_classifier','classifier','score','head') if hasattr(net, n)]
    groups = {g:[f'net.{n}' for n in ns] for g,ns in sequential_groups(net, head).items()}
    x,y = torch.randint(3, 40, (12,8), generator=torch.Generator().manual_seed(0)),torch.arange(12)%3
    dls = DataLoaders(*(DataLoader(list(zip(x,y)), bs=4, shuffle=s) for s in (True,False)))
    return SFTLearner(dls, Classifier(net, groups, example=(x[:1],)), loss_func=F.cross_entropy, metrics=[], **kw), x

def on(learn): return {n for n,p in learn.model.named_parameters() if p.requires_grad}
def count(learn): return sum(p.numel() for p in learn.model.parameters() if p.requires_grad)
def base(learn): return {n:p.detach().clone() for n,p in learn.model.named_parameters() if n not in learn.model.only}
def same(a, b): return all(torch.equal(a[n], b[n]) for n in a|b)
def batch(learn): return learn.dls.valid.one_batch()[0]
def out(m, x):
    with torch.no_grad(): return getattr(m.eval()(x), 'logits', m(x))

def check(learn, x, kind, folder, plain_net):
    "Everything an adapter promises, on one learner"
    names,groups,n_all = list(learn.model.state_dict()),learn.model.groups,sum(p.numel() for p in learn.model.parameters())
    order,before = len(layer_order(learn.model)),out(learn.model, x)
    add_adapter(learn, kind)
    only = learn.model.only
    assert list(learn.model.groups)==list(groups) and list(learn.model.groups)[-1]=='head' and learn.model.groups['head']==groups['head']
    assert sum(map(len, learn.model.groups.values()))==len(list(learn.model.parameters())) and len(layer_order(learn.model))==order
    assert on(learn)==only and torch.allclose(out(learn.model, x), before, atol=1e-5)
    small = count(learn)
    assert small<n_all
    was = base(learn)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        if learn.spec:
            learn.fine_tune(1)
            learn.gradual_unfreeze(1, stages=2)
    learn.freeze()
    assert on(learn)==set(groups['head'])
    learn.freeze_to(1)
    assert on(learn)<=only and count(learn)<=small
    learn.unfreeze()
    assert on(learn)==only and count(learn)==small and same(was, base(learn))
    tuned = out(learn.model, x)
    assert not torch.allclose(tuned, before, atol=1e-4)
    save_adapter(learn, folder)
    opened = peft.PeftModel.from_pretrained(plain_net, folder)
    assert torch.allclose(out(opened, x), tuned, atol=1e-6)
    merge_adapter(learn)
    assert list(learn.model.state_dict())==names and learn.model.groups==groups and on(learn)==set(groups['head'])
    assert torch.allclose(out(learn.model, x), tuned, atol=1e-4)
    learn.unfreeze()
    assert count(learn)==n_all

@pytest.mark.parametrize('kind', ADAPTERS)
@pytest.mark.parametrize('checkpoint', list(PICTURES))
def test_pictures(tmp_path, monkeypatch, checkpoint, kind):
    monkeypatch.setenv('SFT_NB_HOME', str(tmp_path/'home'))
    learn = pictures(tmp_path/'toy', checkpoint)
    check(learn, batch(learn), kind, tmp_path/'adapter', copy.deepcopy(learn.model.net).eval())

@pytest.mark.parametrize('kind', ADAPTERS)
@pytest.mark.parametrize('name', list(CONFIGS))
def test_texts(tmp_path, name, kind):
    learn,x = texts(name)
    check(learn, x, kind, tmp_path/'adapter', network(name))

@pytest.mark.parametrize('config', [lambda: peft.LoHaConfig(r=2), lambda: peft.LoKrConfig(r=2),
    lambda: peft.LoraConfig(r=2, use_rslora=True, target_modules=['qkv'])], ids=['loha','lokr','rslora'])
def test_own_config(tmp_path, config):
    learn = pictures(tmp_path/'toy')
    net = copy.deepcopy(learn.model.net)
    check(learn, batch(learn), config(), tmp_path/'adapter', net)

@pytest.mark.parametrize('head', [None, 'hf', [8]], ids=str)
def test_text_task(tmp_path, monkeypatch, head):
    monkeypatch.setenv('SFT_NB_HOME', str(tmp_path/'home'))
    toy = make_toy('text', tmp_path)
    learn = add_adapter(sft_learner(load_data('text', toy['source'], checkpoint=toy['checkpoint'], batch_size=4, valid=.25), head=head))
    only,was = learn.model.only,base(learn)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1).gradual_unfreeze(1)
    learn.unfreeze()
    assert on(learn)==only and same(was, base(learn))
    x = batch(learn)
    tuned,key = out(learn.model, x),'logits' if head=='hf' else 'last_hidden_state'
    save_adapter(learn, tmp_path/'a')
    assert (tmp_path/'a'/'head.safetensors').exists()==(head!='hf')
    kind = transformers.AutoModelForSequenceClassification if head=='hf' else transformers.AutoModel
    opened = peft.PeftModel.from_pretrained(kind.from_pretrained(toy['checkpoint']), tmp_path/'a').eval()
    with torch.no_grad(): assert torch.allclose(opened(**x)[key], learn.model.net(**x)[key], atol=1e-6)
    assert torch.allclose(out(learn.model.plain(), x), tuned, atol=1e-5)
    merge_adapter(learn)
    assert torch.allclose(out(learn.model, x), tuned, atol=1e-5)

def test_head_outside(tmp_path):
    learn = pictures(tmp_path/'toy', head='flatten:8')
    net,x = copy.deepcopy(learn.model.net),batch(learn)
    add_adapter(learn)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    save_adapter(learn, tmp_path/'a')
    opened = peft.PeftModel.from_pretrained(net, tmp_path/'a').eval()
    head = copy.deepcopy(learn.model.head)
    nn.init.zeros_(head[-1].weight)
    head.load_state_dict(load_file(tmp_path/'a'/'head.safetensors'))
    with torch.no_grad(): assert torch.allclose(head.eval()(opened.base_model.model.forward_features(x)), out(learn.model, x), atol=1e-6)

def test_borders_and_keys(tmp_path, monkeypatch):
    monkeypatch.setenv('SFT_NB_HOME', str(tmp_path/'home'))
    learn = pictures(tmp_path/'toy')
    rows = learn.spec.rows
    plain = cache_key(learn, 7, rows)
    add_adapter(learn, targets=r'blocks\.[45]\..*')
    names = list(learn.model.groups)
    assert names[first_trainable(learn.model)]==names[cache_border(learn.model)]=='blocks.4'
    keys = [plain, cache_key(learn, 7, rows)]
    with torch.no_grad(): next(p for n,p in learn.model.named_parameters() if 'blocks.5' in n and 'lora_B' in n).add_(1)
    keys.append(cache_key(learn, 7, rows))
    learn.model.adapter.config.lora_alpha *= 2
    keys.append(cache_key(learn, 7, rows))
    assert len(set(keys))==4

@pytest.mark.parametrize('checkpoint', ['timm:test_vit', 'timm:test_resnet'])
def test_cached_equals_live(tmp_path, monkeypatch, checkpoint):
    monkeypatch.setenv('SFT_NB_HOME', str(tmp_path/'home'))
    ends = []
    for cached in (True, False):
        learn = add_adapter(pictures(tmp_path/'toy', checkpoint))
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2)
            learn.freeze()
            learn.opt = None
            if cached: learn.fit_head(2)
            else: learn.fit_one_cycle(2, 1e-2)
        ends.append({n:p for n,p in learn.model.named_parameters() if n in learn.model.groups['head']})
    assert all(torch.allclose(p, ends[1][n], atol=1e-5) for n,p in ends[0].items())

def test_statistics_stand_still(tmp_path):
    learn = pictures(tmp_path/'toy', 'timm:test_resnet')
    add_adapter(learn)
    before = {n:b.clone() for n,b in learn.model.named_buffers()}
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert same(before, dict(learn.model.named_buffers()))

def test_dropout_of_adapter_trains(tmp_path):
    learn = add_adapter(pictures(tmp_path/'toy'), dropout=.5)
    learn.model.train()
    drops = [m for n,m in learn.model.named_modules() if isinstance(m, nn.Dropout) and 'lora_dropout' in n]
    assert drops and all(m.training for m in drops)
    freeze_to(learn, 'blocks.3')
    learn.model.train()
    assert {n.split('.')[2] for n,m in learn.model.named_modules() if isinstance(m, nn.Dropout) and 'lora_dropout' in n and m.training}=={'3','4','5'}

def test_layers_are_counted_as_before(tmp_path):
    counts = []
    for adapter in (False, True):
        learn = pictures(tmp_path/'toy', 'timm:test_resnet')
        if adapter: add_adapter(learn)
        learn.freeze_to(layers=12)
        counts.append(list(layer_table(learn)['layers']))
        if adapter: assert on(learn)<=learn.model.only and any('lora' in n for n in on(learn)) and not any('layer1' in n for n in on(learn))
    assert counts[0]==counts[1]

def test_lr_find_leaves_all(tmp_path):
    learn = add_adapter(pictures(tmp_path/'toy'))
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=4, show_plot=False)
    assert same(before, learn.model.state_dict())

def test_repeatable(tmp_path):
    ends = []
    for _ in range(2):
        learn = add_adapter(pictures(tmp_path/'toy'))
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
        ends.append(learn.model.state_dict())
    assert same(*ends)

class Reads(nn.Module):
    "Attention-like: reads the weight of a layer, does not call it"
    def __init__(self):
        super().__init__()
        self.qkv,self.out,self.head = nn.Linear(8,8),nn.Linear(8,8),nn.Linear(8,2)
    def forward(self, x): return self.head(self.out(F.linear(x, self.qkv.weight)))

def test_layer_without_effect():
    net = Reads()
    model = SFTModel(net, {g:[f'net.{n}' for n in ns] for g,ns in sequential_groups(net, ['head']).items()}, example=(torch.zeros(1,8),))
    dl = DataLoader([(torch.zeros(8),0)]*4, bs=2)
    learn = SFTLearner(DataLoaders(dl, dl), model, loss_func=F.cross_entropy)
    assert adaptable_layers(learn)==['out']
    with pytest.raises(AdapterError, match='takes no adapter'): add_adapter(learn, targets=['qkv'])
    with pytest.raises(AdapterError, match='Valid: out'): add_adapter(learn, targets=['nothing'])
    with pytest.raises(AdapterError, match='takes no adapter'): add_adapter(learn, targets=['head'])
    with pytest.raises(AdapterError, match='regular expression'): add_adapter(learn, targets='(')
    assert learn.model.adapter is None and learn.model.only is None
    assert list(add_adapter(learn).model.adapter.layers)==['net.out']

def test_errors(tmp_path):
    learn = add_adapter(pictures(tmp_path/'toy'))
    with pytest.raises(GroupError, match='merge_adapter'): freeze_to(learn, rule='bias')
    with pytest.raises(AdapterError, match='already'): add_adapter(learn)
    save_adapter(learn, tmp_path/'a')
    with pytest.raises(FolderError, match='exists already'): save_adapter(learn, tmp_path/'a')
    assert save_adapter(learn, tmp_path/'a', overwrite=True).is_dir()
    assert json.loads((tmp_path/'a'/'adapter_config.json').read_text())['modules_to_save']

def test_changed_base_is_not_saved(tmp_path, monkeypatch):
    learn = add_adapter(pictures(tmp_path/'toy'))
    fresh = copy.deepcopy(learn.model.plain())
    learn.spec.pretrained = True
    task = copy.copy(learn.spec.task)
    task.model = lambda spec, head: fresh
    learn.spec.task = task
    save_adapter(learn, tmp_path/'a')
    with torch.no_grad(): next(p for n,p in learn.model.named_parameters() if 'norm1.weight' in n).add_(.1)
    with pytest.raises(AdapterError, match='save_predictor'): save_adapter(learn, tmp_path/'b')
    assert not (tmp_path/'b').exists()
