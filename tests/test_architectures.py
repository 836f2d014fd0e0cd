"Groups, freezing and borders over many families of networks, without weights"
import copy
from types import SimpleNamespace
import pytest, torch, torchvision
from torch import nn
from sft_nb.core.basics import GroupError
from sft_nb.checkpoints.references import open_checkpoint
from sft_nb.data.spec import Recipe
from sft_nb.data.task import get_task
from sft_nb.models.grouping import matched_groups, sequential_groups
from sft_nb.models.model import find_group, SFTModel
from sft_nb.models.freeze import group_table, set_trainable, trainable_names
from sft_nb.models.timm_model import image_model
from sft_nb.training.cache import cache_border, why_not
from sft_nb.models import timm_model as image

INNER = dict(test_resnet=64, resnet26d=64, seresnet18=64, test_efficientnet=64, mobilenetv3_small_050=64, test_convnext=64, test_vit=80, test_vit3=80,
             swin_tiny_patch4_window7_224=64, regnetx_002=64, gmlp_ti16_224=64)
AT_HEAD = dict(densenet121=64, test_mambaout=64, test_nfnet=64, xcit_nano_12_p16_224=64, ghostnet_050=64, rexnet_100=64, mobilevit_xxs=64)
TWO_HEADS = dict(levit_128s=224)
FIRST = dict(test_resnet='layer1', test_efficientnet='blocks.0', mobilenetv3_small_050='blocks.0', test_convnext='stages.0', test_vit='blocks.0',
             swin_tiny_patch4_window7_224='layers.0', regnetx_002='s1', densenet121='features.denseblock1', xcit_nano_12_p16_224='blocks.0')

def spec_for(arch, size):
    ckpt = open_checkpoint(f'timm:{arch}', task='image', pretrained=False)
    return Recipe(get_task('image'), vocab=list('abc'), checkpoint=ckpt, pretrained=False, preprocess={'size':size})

def made(arch, **kw):
    size = {**INNER, **AT_HEAD, **TWO_HEADS, 'vgg11':64, 'vgg11_bn':64}[arch]
    torch.manual_seed(0)
    m = image_model(spec_for(arch, size), **kw)
    return m, torch.randn(4, 3, size, size)

@pytest.fixture(scope='module', params=[*INNER, *AT_HEAD, *TWO_HEADS])
def built(request): return request.param, *made(request.param)

def step(m, x, lr=1e-3):
    opt = torch.optim.SGD(m.parameters(), lr=lr, momentum=.9, weight_decay=.1)
    for _ in range(2):
        (m.train()(x)-1).square().sum().backward()
        opt.step()
        opt.zero_grad(set_to_none=False)

def all_names(m): return {n for ns in m.groups.values() for n in ns}
def state(m): return {k:v.clone() for k,v in m.state_dict().items()}

def test_groups_are_named_and_ordered(built):
    arch,m,_ = built
    names = list(m.groups)
    assert names[0].split('.')[0]=='stem' and names[-1]=='head' and len(names)>4
    assert not any(n.startswith('group.') for n in names), names
    if arch in FIRST: assert names[1]==FIRST[arch]
    tails = [int(n.rpartition('.')[2]) for n in names if n.startswith(('blocks.','stages.'))]
    assert tails==sorted(tails)
    sizes = group_table(m).parameters
    assert sizes.iloc[-1]<sizes.sum()/3 and sizes.max()<.9*sizes.sum()

def test_every_parameter_in_one_group(built):
    _,m,_ = built
    held = [n for ns in m.groups.values() for n in ns]
    assert sorted(held)==sorted(n for n,_ in m.named_parameters()) and all(m.groups.values())
    assert group_table(m).parameters.sum()==sum(p.numel() for p in m.parameters())

def freezes(m):
    names = list(m.groups)
    return dict(index=dict(group=2), negative=dict(group=-2), name=dict(group=names[-2]), prefix=dict(group='hea' if names[-2].startswith('head') else 'he'),
                layers=dict(layers=5), bias=dict(rule='bias'), norm=dict(rule='norm'), regex=dict(rule=r'weight$'), predicate=dict(rule=lambda n,p: p.ndim==1))

@pytest.mark.parametrize('how', ['index','negative','name','prefix','layers','bias','norm','regex','predicate'])
def test_frozen_is_bit_identical(built, how):
    arch,m,x = built
    kw = freezes(m)[how]
    if (how,arch)==('norm','test_nfnet') or (how=='prefix' and sum(g.startswith('he') for g in m.groups)>1):
        with pytest.raises(GroupError): trainable_names(m, **kw)
        return
    on = trainable_names(m, **kw)
    assert set(m.groups['head'])<=on<all_names(m)
    if how in ('index','negative','name'): assert on=={n for ns in list(m.groups.values())[find_group(m, kw['group']):] for n in ns}
    set_trainable(m, on)
    was = state(m)
    step(m, x)
    now,mods = m.state_dict(),dict(m.named_modules())
    still = {n for n in was if n in all_names(m)-on}
    for n in {n for n,_ in m.named_buffers()} & set(was):
        own = [k for k,_ in mods[n.rpartition('.')[0]].named_parameters(recurse=False)]
        if own and any(f"{n.rpartition('.')[0]}.{k}" not in on for k in own): still.add(n)
    assert still and [n for n in still if not torch.equal(was[n], now[n])]==[]
    assert any(not torch.equal(was[n], now[n]) for n in on)
    m.load_state_dict(was)
    set_trainable(m, all_names(m))

def test_frozen_buffers_still_though_unfrozen_ones_move():
    m,x = made('test_resnet')
    set_trainable(m, trainable_names(m, 'layer3'))
    was = state(m)
    step(m, x)
    moved = {k.split('.')[1] for k,v in m.state_dict().items() if k.endswith('running_mean') and not torch.equal(v, was[k])}
    assert moved=={'layer3','layer4'}

def whole(m, x): return m.head(m.net.forward_features(x)) if m.head is not None else m.net(x)

def same_cuts(m, x):
    for b in [0, *m.borders()]:
        set_trainable(m, trainable_names(m, b) if b else all_names(m))
        for mode in (False, True):
            m.train(mode)
            with torch.no_grad():
                was = state(m)
                if mode and m.dropout: continue
                torch.manual_seed(1)
                want = whole(m, x)
                m.load_state_dict(was)
                torch.manual_seed(1)
                h = m.prefix(b, x) if b else x
                torch.manual_seed(1)
                got = m.suffix(b, h) if b else m(x)
                m.load_state_dict(was)
                assert torch.allclose(got, want, atol=1e-5, rtol=1e-4), (b, mode)
                if b: assert torch.equal(h, m.eval().prefix(b, x)), b
    set_trainable(m, all_names(m))

def test_pieces_give_the_whole(built):
    arch,m,x = built
    n = len(m.groups)-1
    assert m.borders()==(list(range(1, n+1)) if arch in INNER else [n] if arch in AT_HEAD else [])
    same_cuts(m, x)

@pytest.mark.parametrize('arch,kw', [('vgg11_bn',dict(head='flatten:16')), ('test_resnet',dict(head='flatten:16')), ('test_vit',dict(head=[16], dropout=.5)),
                                     ('test_efficientnet',dict(dropout=.5)), ('test_convnext',dict(head=[16]))], ids=str)
def test_pieces_with_other_heads(arch, kw):
    m,x = made(arch, **kw)
    assert m.borders()==list(range(1, len(m.groups)))
    if not kw.get('dropout'): return same_cuts(m, x)
    set_trainable(m, trainable_names(m, 'head'))
    with torch.no_grad():
        h = m.train().prefix(m.borders()[-1], x)
        assert torch.equal(h, m.eval().prefix(m.borders()[-1], x))
        assert torch.equal(m.suffix(m.borders()[-1], h), m(x))
        m.train()
        assert not torch.equal(m(x), m(x))

@pytest.mark.parametrize('arch', ['ghostnet_050','rexnet_100'])
def test_dropout_of_the_library_belongs_to_the_head(arch):
    "Some networks drop out in what they call features; frozen features stand still, and the head still has its dropout"
    m,x = made(arch)
    assert m.dropout==.2 and made(arch, dropout=.5)[0].dropout==.5
    set_trainable(m, trainable_names(m, 'head')).train()
    b = m.borders()[-1]
    with torch.no_grad(): assert torch.equal(m.prefix(b, x), m.prefix(b, x)) and not torch.equal(m(x), m(x))

def test_wrong_pieces_are_not_used(monkeypatch):
    "A network that is not what its family is gets no inner borders, whatever its weights are"
    monkeypatch.setitem(image._FAMILIES, 'ResNet', (image._run('conv1','bn1'), ()))
    m,_ = made('test_resnet')
    assert m.borders()==[len(m.groups)-1]

@pytest.mark.parametrize('arch', ['test_resnet','test_convnext','test_vit','test_mambaout'])
def test_random_depth_of_a_frozen_body_is_off(arch):
    "Modules without parameters belong to the block they stand in, also at the end of the last one"
    import timm
    net = timm.create_model(arch, num_classes=3, drop_path_rate=.9)
    name = net.pretrained_cfg['classifier']
    m = SFTModel(net, {g:[f'net.{n}' for n in ns] for g,ns in matched_groups(net, [name]).items()})
    set_trainable(m, trainable_names(m, 'head')).train()
    x = torch.randn(2,3,160,160)
    with torch.no_grad(): assert torch.equal(m(x), m(x))

def test_frozen_through_drop_path():
    "Random depth and dropout below the border stand still"
    import timm
    net = timm.create_model('test_vit', num_classes=3, drop_path_rate=.5, proj_drop_rate=.5, pos_drop_rate=.5)
    groups = {g:[f'net.{n}' for n in ns] for g,ns in matched_groups(net, ['head']).items()}
    m = image.PictureModel(net, groups, example=(torch.zeros(1,3,160,160),), head_names=['head'])
    set_trainable(m, trainable_names(m, 'blocks.3')).train()
    x,b = torch.randn(2,3,160,160),find_group(m, 'blocks.3')
    with torch.no_grad():
        assert torch.equal(m.prefix(b, x), m.prefix(b, x))
        assert not torch.equal(m(x), m(x))

@pytest.mark.parametrize('arch', AT_HEAD)
def test_says_that_it_cuts_only_at_the_head(arch):
    m,_ = made(arch)
    set_trainable(m, trainable_names(m, 2))
    spec = SimpleNamespace(rows=[0], has_rows=True)
    assert cache_border(m) is None
    assert f"trains from {list(m.groups)[2]!r} and has no border at or below it" in why_not(SimpleNamespace(spec=spec, model=m, cbs=[], augments=False))
    set_trainable(m, trainable_names(m, 'head'))
    assert cache_border(m)==len(m.groups)-1

def wrapped(net, head, shape=(1,3,32,32)):
    return SFTModel(net, {g:[f'net.{n}' for n in ns] for g,ns in sequential_groups(net, head).items()}, example=(torch.zeros(*shape),))

def small_vgg():
    "torchvision's VGG11 with narrow dense layers"
    from torchvision.models.vgg import VGG, cfgs, make_layers
    net = VGG(make_layers(cfgs['A']), num_classes=10, init_weights=False)
    net.avgpool,net.classifier[0],net.classifier[3],net.classifier[6] = nn.AdaptiveAvgPool2d(1),nn.Linear(512,32),nn.Linear(32,32),nn.Linear(32,10)
    return net

VISION = dict(resnet18=(lambda: torchvision.models.resnet18(weights=None), ['fc'], ['conv1','bn1','layer1.0','layer1.1'], 'layer4.1'),
    vgg11=(lambda: small_vgg(), ['classifier.6'], ['features.0','features.3'], 'classifier.3'),
    mobilenet=(lambda: torchvision.models.mobilenet_v3_small(weights=None), ['classifier.3'], ['features.0.0','features.0.1','features.1'], 'classifier.0'),
    convnext=(lambda: torchvision.models.convnext_tiny(weights=None), ['classifier.2'], ['features.0.0','features.0.1','features.1.0'], 'classifier.0'))

@pytest.mark.parametrize('name', VISION)
def test_torchvision(name):
    make,head,first,last = VISION[name]
    m = wrapped(make(), head)
    names = list(m.groups)
    assert names[:len(first)]==first and names[-1]=='head' and (last is None or names[-2]==last)
    assert m.groups['head']==[f'net.{head[0]}.{k}' for k in ('weight','bias')]
    assert sorted(n for ns in m.groups.values() for n in ns)==sorted(n for n,_ in m.named_parameters())
    set_trainable(m, trainable_names(m, 2))
    was,x = state(m),torch.randn(2,3,32,32)
    step(m, x)
    low = set(m.groups[names[0]]+m.groups[names[1]])
    assert all(torch.equal(was[n], m.state_dict()[n]) for n in low)

def test_keras_layers_of_torchvision():
    net = torchvision.models.vgg16(weights=None)
    m = wrapped(nn.Sequential(net.features, nn.Flatten(), nn.Linear(512,8)), ['2'])
    on = trainable_names(m, layers=15)
    assert {n for n in m.groups if not on & set(m.groups[n])}=={f'0.{i}' for i in (0,2,5,7,10,12,14,17,19,21)}

def test_plain_sequential():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3,4,3), nn.BatchNorm2d(4), nn.ReLU()), nn.Dropout(.5), nn.Sequential(nn.Conv2d(4,8,3), nn.ReLU()),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,2))
    m = wrapped(net, ['5'])
    assert list(m.groups)==['0.0','0.1','2','head']
    set_trainable(m, trainable_names(m, 'head'))
    x = torch.randn(4,3,8,8)
    assert torch.equal(m.train()(x), m(x))
    was = copy.deepcopy(m.state_dict())
    step(m, x)
    assert [k for k,v in m.state_dict().items() if not torch.equal(v, was[k])]==['net.5.weight','net.5.bias']

def test_one_group_is_an_error():
    for m in (wrapped(nn.Linear(4,2), [''], (1,4)), SFTModel(nn.Linear(4,2), {'all':['net.weight','net.bias']})):
        with pytest.raises(GroupError, match='one group'): trainable_names(m, 0)

def test_everything_or_nothing_is_an_error():
    m,_ = made('test_resnet')
    wrong = [(dict(group='stem'), 'freezes nothing'), (dict(rule='.'), 'freezes nothing'), (dict(group=99), 'Valid: -6 to 5'),
             (dict(layers=1), 'Valid: 2 to'), (dict(layers=10**6), 'freezes nothing or everything'), (dict(group='layer'), 'matches 4 groups'),
             (dict(group='lyer4'), "Did you mean 'layer4'"), (dict(rule='nix'), 'names no parameter'), (dict(rule='('), 'is not a regular expression'),
             (dict(), 'Pass exactly one of'), (dict(group=1,layers=3), 'Pass exactly one of'), (dict(group=True), 'got True'), (dict(group=1.5), 'got 1.5'),
             (dict(group=''), 'no group')]
    for kw,words in wrong:
        with pytest.raises(GroupError, match=words.replace('(', r'\(')): trainable_names(m, **kw)

def test_tied_weights_stand_in_the_lowest_group():
    net = nn.ModuleDict(dict(low=nn.Linear(4,4), mid=nn.Linear(4,4), top=nn.Linear(4,4)))
    net['top'].weight = net['low'].weight
    m = SFTModel(net, {'a':['net.low.weight','net.low.bias'], 'b':['net.mid.weight','net.mid.bias'], 'head':['net.top.weight','net.top.bias']})
    assert m.groups=={'a':['net.low.weight','net.low.bias'], 'b':['net.mid.weight','net.mid.bias'], 'head':['net.top.bias']}

def test_parameters_left_out_or_unknown():
    net = nn.Sequential(nn.Linear(2,2), nn.Linear(2,2))
    with pytest.raises(GroupError, match="2 parameters are in no group, such as 'net.0.weight'"): SFTModel(net, {'head':['net.1.weight','net.1.bias']})
    with pytest.raises(GroupError, match="No parameter is named 'net.1.wight'. Did you mean 'net.1.weight'"): SFTModel(net, {'head':['net.1.wight']})
