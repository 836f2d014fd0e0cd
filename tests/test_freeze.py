"Freezing by fastai's methods and by ours, and fastai's own doors on an `SFTLearner`"
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.mixup import MixUp
from fastai.data.transforms import get_image_files
from fastai.learner import Learner, load_learner
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageDataLoaders
from torch import nn
from sft_nb.core.basics import FitError, GroupError
from sft_nb.data.task import get_task
from sft_nb.data.load import load_data
from sft_nb.models.grouping import is_norm, sequential_groups
from sft_nb.models.model import SFTModel
from sft_nb.models.freeze import set_trainable, trainable_names
from sft_nb.training.learner import freeze_to, layer_table, sft_learner, SFTLearner
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.tasks.toys import make_toy

def quiet(learn):
    for cb in [o for o in learn.cbs if type(o).__name__=='ProgressCallback']: learn.remove_cb(cb)
    learn.logger = lambda *_: None
    return learn

@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    make_toy('image', folder)
    return folder

def data(shapes, arch='test_resnet', size=64, **kw):
    return load_data('image', shapes, checkpoint=f'timm:{arch}', pretrained=False, size=size, valid=.25, augment=False, **kw)
def learner(shapes, arch='test_resnet', size=64, **kw): return quiet(sft_learner(data(shapes, arch, size), **kw))

def state(m): return {k:v.detach().clone() for k,v in m.state_dict().items()}
def moved(m, was): return {k for k,v in m.state_dict().items() if not torch.equal(v, was[k])}
def trains(m): return {n for n,p in m.named_parameters() if p.requires_grad}
def upto(m, i): return {n for ns in list(m.groups.values())[i:] for n in ns}

class Mixed(nn.Module):
    "Batch norm, layer norm and dropout in each block"
    def __init__(self, n=8):
        super().__init__()
        self.stem = nn.Linear(4, n)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(n,n), nn.BatchNorm1d(n), nn.LayerNorm(n), nn.Dropout(.5), nn.ReLU()) for _ in range(3))
        self.out = nn.Linear(n, 2)
    def forward(self, x):
        x = self.stem(x)
        for b in self.blocks: x = b(x)
        return self.out(x)

def mixed():
    torch.manual_seed(0)
    net = Mixed()
    return SFTModel(net, {g:[f'net.{n}' for n in ns] for g,ns in sequential_groups(net, ['out']).items()}, example=(torch.zeros(2,4),))

def train(m, opt, steps=4):
    opt = opt(m.parameters())
    for _ in range(steps):
        m.train()(torch.randn(16,4)).square().sum().backward()
        opt.step()
        opt.zero_grad(set_to_none=False)

OPTS = dict(sgd=lambda ps: torch.optim.SGD(ps, 1e-2, momentum=.9, weight_decay=.1), adam=lambda ps: torch.optim.AdamW(ps, 1e-2, weight_decay=.1))

@pytest.mark.parametrize('opt', OPTS)
@pytest.mark.parametrize('border', [1, 3, 6, 7])
def test_every_frozen_tensor_stands_still(opt, border):
    m = mixed()
    train(m, OPTS[opt])
    for p in m.parameters(): p.grad = torch.ones_like(p)
    set_trainable(m, trainable_names(m, border))
    was = state(m)
    train(m, OPTS[opt])
    low = [f'net.{g}.' for g in list(m.groups)[:border]]
    assert not [k for k in moved(m, was) if k.startswith(tuple(low))]
    assert moved(m, was)>={k for k in was if not k.startswith(tuple(low)) and k.endswith(('weight','running_mean','num_batches_tracked'))}

def test_frozen_dropout_is_off_and_unfrozen_is_on():
    m,x = mixed(),torch.randn(8,4)
    set_trainable(m, trainable_names(m, 'blocks.2.0'))
    m.train()
    modes = [[c.training for c in b] for b in m.net.blocks]
    assert modes==[[False]*5, [False]*5, [True]*5] and m.net.out.training and not m.net.stem.training
    m.eval()
    assert not any(o.training for o in m.modules())
    set_trainable(m.train(), trainable_names(m, 'head'))
    assert torch.equal(m(x), m(x))

@pytest.mark.parametrize('rule,want', [('bias', lambda n,m: n.endswith('bias')), ('norm', lambda n,m: is_norm(m.get_submodule(n.rpartition('.')[0]))),
    (r'blocks\.1', lambda n,m: 'blocks.1' in n), (lambda n,p: p.ndim==2, lambda n,m: m.get_parameter(n).ndim==2)], ids=['bias','norm','regex','predicate'])
def test_rules(rule, want):
    m = mixed()
    set_trainable(m, trainable_names(m, rule=rule))
    on = {n for n,_ in m.named_parameters() if want(n, m)} | set(m.groups['head'])
    assert trains(m)==on
    was = state(m)
    train(m, OPTS['sgd'])
    assert not moved(m, was) & ({n for n,_ in m.named_parameters()}-on)
    whole = {n for n,mod in m.named_modules() if isinstance(mod, nn.BatchNorm1d) and all(p.requires_grad for p in mod.parameters())}
    assert {k.rpartition('.')[0] for k in moved(m, was) if k.endswith('running_mean')}==whole

@pytest.mark.parametrize('arch,size', [('test_resnet',64), ('test_vit',80), ('test_convnext',64)])
def test_fastai_methods_mean_these_groups(shapes, arch, size):
    learn = learner(shapes, arch, size)
    m,n = learn.model,len(learn.model.groups)
    assert trains(m)==set(m.groups['head'])
    to = learn.freeze_to
    for call,i in [(learn.unfreeze, 0), (learn.freeze, n-1), (lambda: to(2), 2), (lambda: to(-3), n-3), (lambda: to(0), 0)]:
        for _ in range(2):
            call()
            assert trains(m)==upto(m, i)
            learn.create_opt() if learn.opt is None else None
            assert learn.opt.frozen_idx==i
    with pytest.raises(GroupError, match='Valid: '): learn.freeze_to(n)
    with pytest.raises(GroupError, match='Valid: '): learn.freeze_to(-n-1)
    assert trains(m)==upto(m, 0)

def test_optimizer_groups_are_the_layer_groups(shapes):
    learn = learner(shapes)
    learn.create_opt()
    assert [len(ps) for ps in learn.opt.param_lists]==[len(ns) for ns in learn.model.groups.values()]

def test_fastai_fits_hold_what_is_frozen(shapes):
    learn = learner(shapes, wd=.1)
    for call in (lambda: learn.fit_one_cycle(1, 1e-2), lambda: learn.fit_flat_cos(1, 1e-2), lambda: learn.fit_sgdr(1, 1, 1e-2), lambda: learn.fit(1, 1e-2)):
        was = state(learn.model)
        call()
        assert moved(learn.model, was)==set(learn.model.groups['head'])

def test_freeze_between_fits(shapes):
    learn = learner(shapes, freeze=None, wd=.1)
    learn.fit(1, 1e-2)
    learn.freeze_to('layer4')
    was = state(learn.model)
    learn.fit(1, 1e-2)
    assert not [k for k in moved(learn.model, was) if 'layer4' not in k and 'fc' not in k]
    learn.unfreeze()
    was = state(learn.model)
    learn.fit(1, 1e-2)
    assert set(learn.model.groups['stem'])<=moved(learn.model, was)

def test_gradients_below_the_border_are_not_made(shapes):
    learn = learner(shapes, freeze='layer3')
    learn.fit(1, 1e-3)
    assert all(p.grad is None for n,p in learn.model.named_parameters() if not p.requires_grad)

def test_nothing_to_train_is_an_error(shapes):
    learn = learner(shapes)
    for p in learn.model.parameters(): p.requires_grad_(False)
    with pytest.raises(FitError, match='every group is frozen'): learn.fit(1)

def test_rates_reach_the_groups(shapes):
    learn = learner(shapes, freeze=None)
    seen = []
    class Look(Callback):
        def before_step(self): seen.append([h['lr'] for h in self.opt.hypers])
    n = len(learn.model.groups)
    learn.fit(1, slice(1e-5,1e-3), cbs=Look())
    assert np.allclose(seen[0], np.geomspace(1e-5, 1e-3, n))
    assert np.allclose(layer_table(learn).lr, seen[0])
    learn.fine_tune(1, decay=.5, base_lr=1e-3)
    rates = layer_table(learn).lr
    assert np.allclose(rates[1:].to_numpy()/rates[:-1].to_numpy(), 2)

def test_counts_of_the_classic_recipe(tmp_path):
    from PIL import Image
    for c in range(10):
        (tmp_path/str(c)).mkdir()
        for i in range(2): Image.new('RGB', (32,32), (c*20,i*99,0)).save(tmp_path/str(c)/f'{i}.png')
    dls = load_data('image', tmp_path, checkpoint='timm:vgg16', pretrained=False, valid=.5)
    learn = sft_learner(dls, head='flatten:1024', freeze=None)
    freeze_to(learn, layers=15)
    t = layer_table(learn)
    assert (t.trainable.sum(), (t.parameters-t.trainable).sum())==(32_780_810, 7_635_264)

CALLBACKS = [GradientAccumulation(8), GradientClip(.1), MixUp(), EarlyStoppingCallback(patience=1), SaveModelCallback()]

@pytest.mark.parametrize('cb', CALLBACKS, ids=lambda o: o.name)
def test_fastai_callbacks(shapes, tmp_path, cb):
    learn = learner(shapes, freeze='layer4', path=tmp_path)
    was = state(learn.model)
    learn.fit_one_cycle(2, 1e-3, cbs=cb)
    assert moved(learn.model, was) and not moved(learn.model, was)-{k for k in was if 'layer4' in k or 'fc' in k}

@pytest.mark.parametrize('aug', [False, True])
def test_plain_fastai_loaders(shapes, aug):
    dls = ImageDataLoaders.from_folder(shapes, valid_pct=.25, seed=1, item_tfms=Resize(64), bs=4, num_workers=0, batch_tfms=aug_transforms() if aug else None)
    learn = quiet(sft_learner(dls, checkpoint='timm:test_resnet', pretrained=False))
    assert isinstance(learn, SFTLearner) and isinstance(learn, Learner) and learn.dls.vocab==['round','square']
    was = state(learn.model)
    learn.fit(1, 1e-2)
    assert moved(learn.model, was)==set(learn.model.groups['head'])
    learn.fine_tune(1)
    assert len(evaluate(learn))==len(dls.valid_ds)
    name,i,probs = learn.predict(get_image_files(shapes)[0])
    assert name in learn.dls.vocab and probs[i]==probs.max()

def test_fastai_doors(shapes, tmp_path):
    import matplotlib
    matplotlib.use('Agg')
    learn = learner(shapes, path=tmp_path)
    learn.fit(1, 1e-3)
    preds,targs = learn.get_preds()
    ev = evaluate(learn)
    assert np.allclose(preds.numpy(), ev.probabilities, atol=1e-5) and [learn.dls.vocab[t] for t in targs]==ev.rows.target.tolist()
    learn.show_results(max_n=2)
    learn.dls.show_batch(max_n=2)
    loss,acc,*_ = learn.validate()
    assert np.isclose(acc, ev.metrics['accuracy']) and np.isclose(loss, ev.rows.loss.mean(), atol=1e-5)
    test = learn.spec.task.item_loader(learn.spec, ev.rows, 4)
    assert torch.allclose(learn.get_preds(dl=test, with_loss=False)[0], preds, atol=1e-5)

def test_fastai_save_and_load(shapes, tmp_path):
    learn = learner(shapes, path=tmp_path, freeze=None)
    learn.fit(1, 1e-2)
    learn.save('here')
    was = state(learn.model)
    learn.fit(1, 1e-2)
    assert moved(learn.model, was)
    learn.load('here')
    assert not moved(learn.model, was)

def test_fastai_export(shapes, tmp_path):
    learn = learner(shapes, path=tmp_path)
    learn.fit(1, 1e-3)
    want = learn.model.eval()(torch.ones(1,3,64,64))
    learn.export('model.pkl')
    again = load_learner(tmp_path/'model.pkl')
    assert torch.equal(again.model.eval()(torch.ones(1,3,64,64)), want)
