"Faster ways give the same numbers: channels last, folded norms, pictures decoded once and in threads"
import numpy as np, pandas as pd, pytest, torch
from torch import nn
from sft_nb.data import images
from sft_nb.data.load import load_data
from sft_nb.data.problems import BadRows
from sft_nb.data.task import get_task
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.training.cache import cache_key
from sft_nb.training.learner import sft_learner
from sft_nb.tasks.toys import make_toy

def norms(net): return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())

def moved(net):
    "Statistics and weights of batch norm that are not 0 and 1"
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                for t,low in ((m.running_mean, -.2), (m.running_var, .5), (m.weight, .5), (m.bias, -.2)): t.copy_(torch.rand(t.shape, generator=g)*.8+low)

@pytest.fixture
def pictures(tmp_path, home):
    toy = make_toy('image', tmp_path/'toy')
    return lambda checkpoint='timm:test_resnet',**kw: load_data('image', toy['source'], checkpoint=checkpoint, pretrained=False, size=64, augment=False, **kw)

@pytest.mark.parametrize('name', ['test_resnet','test_efficientnet','test_byobnet','test_convnext','test_vit','resnet18','mobilenetv3_small_050',
                                  'regnety_002','densenet121','tf_efficientnet_lite0'])
def test_folded_is_the_plain_network(name, pictures):
    learn = sft_learner(pictures(f'timm:{name}'))
    model = learn.model.eval()
    moved(model)
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = model(x)
        with model.folding(): fast = model(x)
    assert model.folded is None
    assert float((fast-plain).abs().max())<=1e-4*max(1., float(plain.abs().max()))
    with model.folding(): folded = model.folded and norms(model.net)-norms(model.folded[1].net)
    assert bool(folded)==bool(norms(model.net) and model.cut)

def test_only_what_is_frozen_is_folded(pictures):
    learn = sft_learner(pictures(), freeze=None)
    learn.freeze_to('layer3')
    border = learn.model.highest_border({n for n,p in learn.model.named_parameters() if p.requires_grad})
    learn.model.eval()
    with learn.model.folding(border): view = learn.model.folded[1].net
    assert norms(view.layer3)==norms(learn.model.net.layer3)>0 and norms(view.layer1)==0<norms(learn.model.net.layer1)

def test_training_leaves_the_folded_weights_behind(pictures):
    "A fit uses the folded copy, and the model is the plain one afterwards: saved names, state, gradients"
    learn = sft_learner(pictures(), freeze=None)
    names = list(learn.model.state_dict())
    learn.freeze_to('layer3')
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert learn.model.folded is None and list(learn.model.state_dict())==names and norms(learn.model.net)>0

def test_layout_and_folding_are_part_of_the_key(pictures):
    learn = sft_learner(pictures())
    border,rows = max(learn.model.borders()),learn.spec.rows
    plain = cache_key(learn, border, rows)
    with learn.model.eval().folding(border): assert cache_key(learn, border, rows)!=plain
    learn.model.layout = torch.contiguous_format
    assert cache_key(learn, border, rows)!=plain

def test_hooks_hear_frozen_layers(pictures):
    learn = sft_learner(pictures())
    heard = []
    hook = learn.model.net.conv1.register_forward_hook(lambda *_: heard.append(1))
    evaluate(learn)
    hook.remove()
    assert heard

@pytest.fixture
def saved(pictures, tmp_path):
    learn = sft_learner(pictures())
    moved(learn.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return load_predictor(save_predictor(learn, tmp_path/'model', metrics={}), device='cpu'),[str(o) for o in learn.spec.rows.image]

def test_prediction_decodes_once(saved, monkeypatch):
    model,items = saved
    read,seen = images.read_picture,[]
    monkeypatch.setattr(images, 'read_picture', lambda o, *args, **kw: seen.append(str(o)) or read(o, *args, **kw))
    model.predict(items, batch_size=4)
    assert set(seen)==set(items) and len(seen)<=len(items)+1 # fastai reads the first item once more when a loader is made

def test_prediction_is_that_of_the_plain_model(saved):
    model,items = saved
    fast = model.predict_proba(items).drop(columns='item').to_numpy()
    model.keep_folded,model.model.keep_folded,model.model.folded = False,False,None
    model.model.folded_view = lambda border: None
    plain = model.predict_proba(items).drop(columns='item').to_numpy()
    assert np.abs(fast-plain).max()<1e-4 and np.abs(fast-plain).max()>0

def test_all_unreadable_items_are_named(saved, tmp_path):
    model,items = saved
    for i,o in ((1, 'a.png'), (len(items), 'b.png')):
        (tmp_path/o).write_bytes(b'no picture')
        items.insert(i, str(tmp_path/o))
    with pytest.raises(BadRows) as e: model.predict(items, batch_size=2)
    assert len(e.value.problems)==2 and all(o in str(e.value) for o in ('a.png','b.png'))
    left = model.predict(items, batch_size=2, bad='skip')
    assert list(left['item'])==[o for o in items if not o.endswith(('a.png','b.png'))] and left.probability.notna().all()
    good = model.predict(list(left['item']), batch_size=2)
    pd.testing.assert_frame_equal(left, good, rtol=1e-5)
    assert len(model.predict_proba(items, bad='skip'))==len(left)

def test_a_changed_weight_is_seen(saved):
    model,items = saved
    before = model.predict(items).probability
    with torch.no_grad(): next(m for m in model.model.net.modules() if isinstance(m, nn.BatchNorm2d)).bias += 1
    assert not np.allclose(before, model.predict(items).probability)
