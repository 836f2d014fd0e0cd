"What a fit may be given besides data and rates: equal steps, equal gradients, and overfitting named only where it is"
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientClip
from sft_nb.core.basics import FitError
from sft_nb.data.task import get_task
from sft_nb.data.load import load_data
from sft_nb.training.learner import sft_learner
from sft_nb.training.cache import frozen_cache, why_not
from sft_nb.training.callbacks import Accumulate, Autocast, checkpoint_activations, has_bfloat16, keep_weights, L2SP, wise_ft, _library_checkpointing
from sft_nb.training.curves import find_overfitting, plot_curves
from sft_nb.training.adapters import add_adapter, merge_adapter
from sft_nb.tasks.toys import make_toy

torch.set_num_threads(1)
PICTURES = {'timm:test_vit':80, 'timm:test_resnet':64, 'timm:test_efficientnet':64, 'timm:test_convnext':64, 'timm:test_nfnet':96}

def pictures(folder, checkpoint='timm:test_vit', bs=4, n=13, freeze=None, **kw):
    if not (folder/'square').exists(): make_toy('image', folder, n=n)
    load = dict(valid=.25, augment=False, size=PICTURES[checkpoint])
    return sft_learner(load_data('image', folder, checkpoint=checkpoint, pretrained=False, batch_size=bs, **load), freeze=freeze, **kw)

def texts(folder, freeze=None, **kw):
    if not (folder/'bert').exists(): make_toy('text', folder)
    return sft_learner(load_data('text', folder/'moods.csv', checkpoint=str(folder/'bert'), batch_size=4, valid=.25), freeze=freeze, **kw)

def fit(learn, *args, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kw)
    return learn

def far(a, b): return max((p-q).abs().max().item() for p,q in zip(a.model.parameters(), b.model.parameters()))
def slow(**kw): return dict(lr=1e-3, wd=0., **kw)

class Steps(Callback):
    "Counts steps of the optimizer"
    def before_fit(self): self.n = 0
    def after_step(self): self.n += 1

@pytest.mark.parametrize('small,large', [(2,4), (4,12), (5,10), (5,20), (3,21), (4,1000)])
def test_accumulated_step_is_that_of_the_large_batch(tmp_path, small, large):
    a,b = fit(pictures(tmp_path, bs=large if large<20 else 20), 3, **slow()),pictures(tmp_path, bs=small)
    steps = Steps()
    fit(b, 3, **slow(cbs=[Accumulate(large), steps]))
    n = len(b.dls.train_ds)
    if large in (21,1000): assert steps.n==3
    if large%small==0 and large<=n: assert steps.n==3*-(-n//large)
    assert far(a, b)<2e-5

def test_group_larger_than_asked(tmp_path):
    "Batches of 4 for groups of 6 step every 8 items, and weigh them as 8"
    assert far(fit(pictures(tmp_path, bs=8), 2, **slow()), fit(pictures(tmp_path, bs=4), 2, **slow(cbs=Accumulate(6))))<2e-5

def test_clip_sees_the_group(tmp_path):
    a = fit(pictures(tmp_path, bs=12), 2, **slow(cbs=GradientClip(.01)))
    assert far(a, fit(pictures(tmp_path, bs=4), 2, **slow(cbs=[GradientClip(.01), Accumulate(12)])))<2e-5
    assert far(a, fit(pictures(tmp_path, bs=12), 2, **slow()))>1e-5

def test_weight_of_a_batch(tmp_path):
    a,b = fit(pictures(tmp_path), 1, **slow(cbs=Accumulate(8))),fit(pictures(tmp_path), 1, **slow(cbs=Accumulate(8, weight=lambda y: 3*len(y))))
    assert far(a, b)<1e-5

def test_nothing_is_left_after_a_stopped_fit(tmp_path):
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.iter==2: raise KeyboardInterrupt()
    learn = pictures(tmp_path)
    with pytest.raises(KeyboardInterrupt): fit(learn, 1, **slow(cbs=[Accumulate(1000), Stop()]))
    same = pictures(tmp_path)
    same.state.fits,same.opt = learn.state.fits,None
    assert far(fit(learn, 1, **slow(cbs=Accumulate(8))), fit(same, 1, **slow(cbs=Accumulate(8))))<1e-6

def test_accumulate_on_cached_features(tmp_path, monkeypatch):
    monkeypatch.setenv('SFT_NB_HOME', str(tmp_path/'home'))
    a,b = pictures(tmp_path/'toy', bs=12, freeze='body'),pictures(tmp_path/'toy', bs=4, freeze='body')
    with a.no_bar(), a.no_logging(), frozen_cache(a): a.fit(2, 1e-2)
    with b.no_bar(), b.no_logging(), frozen_cache(b): b.fit(2, 1e-2, cbs=Accumulate(12))
    assert far(a, b)<1e-5

@pytest.mark.skipif(not has_bfloat16(), reason='no bfloat16 here')
@pytest.mark.parametrize('make', [pictures, texts])
def test_autocast(tmp_path, make):
    seen = []
    learn = make(tmp_path)
    next(m for m in learn.model.modules() if isinstance(m, torch.nn.Linear)).register_forward_hook(lambda m,i,o: seen.append(o.dtype))
    fit(learn, 1, **slow(cbs=[Autocast(), Accumulate(8)]))
    assert set(seen)=={torch.bfloat16} and not torch.is_autocast_enabled('cpu')
    assert {p.dtype for p in learn.model.parameters()}=={torch.float32} and learn.get_preds(with_loss=False)[0].dtype==torch.float32

def test_autocast_ends_with_a_broken_fit(tmp_path, monkeypatch):
    class Break(Callback):
        def after_pred(self): raise KeyboardInterrupt()
    if has_bfloat16():
        with pytest.raises(KeyboardInterrupt): fit(pictures(tmp_path), 1, cbs=[Autocast(), Break()])
        assert not torch.is_autocast_enabled('cpu')
    learn = pictures(tmp_path)
    if has_bfloat16():
        with pytest.raises(KeyboardInterrupt): fit(learn, 1, cbs=[Autocast(), Break()])
        x,fresh = learn.dls.valid.one_batch()[0],pictures(tmp_path)
        with torch.no_grad(): assert torch.equal(learn.model.eval()(x), fresh.model.eval()(x)) and 'forward' not in vars(learn.model)
    monkeypatch.setattr('sft_nb.training.callbacks.has_bfloat16', lambda device: False)
    with pytest.raises(FitError, match='does not compute in bfloat16'): fit(pictures(tmp_path), 1, cbs=Autocast())

def grads(learn, again):
    "Gradients after the passes of one step in training mode"
    if again: checkpoint_activations(learn)
    b = learn.dls.valid.one_batch()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learn.model.train()
        learn.loss_func(learn.model(*b[:-1]), b[-1]).backward()
    return {n:p.grad for n,p in learn.model.named_parameters() if p.grad is not None}

@pytest.mark.parametrize('adapter', [False, True])
@pytest.mark.parametrize('freeze', [None, 1, -2])
@pytest.mark.parametrize('checkpoint', [*PICTURES, 'text', 'text, hf'])
def test_same_gradients(tmp_path, checkpoint, freeze, adapter):
    out = []
    for again in (False, True):
        learn = pictures(tmp_path/'toy', checkpoint, dropout=.2) if checkpoint in PICTURES else texts(tmp_path/'toy', head='hf' if 'hf' in checkpoint else None)
        if adapter: add_adapter(learn)
        if freeze is not None: learn.freeze_to(freeze)
        out.append((grads(learn, again), {n:b.clone() for n,b in learn.model.named_buffers() if b.is_floating_point()}))
    (a,sa),(b,sb) = out
    assert a.keys()==b.keys() and len(a)>1
    assert all(torch.allclose(a[n], b[n], atol=1e-6) for n in a)
    if learn.model.checkpointing: assert all(torch.allclose(sa[n], sb[n]) for n in sa)

def saved_bytes(learn, again):
    "Bytes that the graph of one forward pass keeps"
    if again: checkpoint_activations(learn)
    own,kept = {p.data_ptr() for p in learn.model.parameters()},{}
    def pack(t):
        if t.data_ptr() not in own: kept[t.data_ptr()] = t.numel()*t.element_size()
        return t
    learn.model.train()
    b = learn.dls.train.one_batch()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): kept_graph = learn.model(*b[:-1]).sum()
    return sum(kept.values())*bool(kept_graph.requires_grad)

@pytest.mark.parametrize('checkpoint', ['timm:test_vit', 'timm:test_resnet', 'text'])
def test_less_is_kept(tmp_path, checkpoint):
    def make(): return texts(tmp_path/'toy') if checkpoint=='text' else pictures(tmp_path/'toy', checkpoint)
    assert saved_bytes(make(), True)<.5*saved_bytes(make(), False)

def test_library_switches():
    from transformers import BertConfig, BertModel
    x = torch.arange(8)[None]
    net = BertModel(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=40,
        hidden_dropout_prob=0., attention_probs_dropout_prob=0.))
    for p in net.embeddings.parameters(): p.requires_grad_(False)
    out = []
    for on in (False, True, False):
        _library_checkpointing(net.train(), on)
        net.zero_grad()
        runs = []
        hook = net.encoder.layer[0].attention.register_forward_pre_hook(lambda *_,runs=runs: runs.append(1))
        net(x).last_hidden_state.sum().backward()
        hook.remove()
        out.append(([p.grad.clone() for p in net.encoder.parameters()], len(runs)))
    assert [n for _,n in out]==[1,2,1]
    assert all(torch.allclose(p, q, atol=1e-6) for p,q in zip(out[0][0], out[1][0]))
    with pytest.raises(FitError, match='Linear cannot'): _library_checkpointing(torch.nn.Linear(2,2), True)

def test_mixup_turns_the_cache_off(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('SFT_NB_HOME', str(tmp_path/'home'))
    learn = pictures(tmp_path/'toy', freeze='body')
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, freeze_epochs=1, cbs=MixUp(.4))
    assert 'Cache off: MixUp mixes inputs' in capsys.readouterr().err
    learn.freeze()
    assert why_not(learn) is None

def test_l2sp_is_the_gradient_of_its_formula(tmp_path):
    class Keep(Callback):
        def before_step(self): self.grads = {n:p.grad.clone() for n,p in self.model.named_parameters()}
    out = []
    for cbs in ([], [L2SP(.5, .25)], [L2SP(.5, .25), Accumulate(20)]):
        learn,keep = pictures(tmp_path, bs=20),Keep()
        if cbs:
            cbs[0].start = {n:p.detach()-.1 for n,p in learn.model.named_parameters() if n not in learn.model.groups['head']}
        fit(learn, 1, **slow(cbs=[*cbs, keep]))
        out.append(keep.grads)
    fresh = dict(pictures(tmp_path).model.named_parameters())
    for n,g in out[0].items():
        extra = .25*fresh[n] if n in learn.model.groups['head'] else torch.full_like(g, .05)
        assert torch.allclose(out[1][n]-g, extra, atol=1e-4)

def test_l2sp_start_is_that_of_the_first_phase(tmp_path, monkeypatch):
    monkeypatch.setenv('SFT_NB_HOME', str(tmp_path/'home'))
    learn,pull = pictures(tmp_path/'toy', freeze='body'),L2SP()
    start = {n:p.detach().clone() for n,p in learn.model.named_parameters()}
    with learn.no_bar(), learn.no_logging(): learn.gradual_unfreeze(1, cbs=pull)
    assert pull.start.keys()==start.keys()-set(learn.model.groups['head'])
    assert all(torch.equal(pull.start[n], start[n]) for n in pull.start)

def test_wise_ft(tmp_path):
    learn = pictures(tmp_path, 'timm:test_resnet')
    kept = keep_weights(learn)
    fit(learn, 1, 1e-2)
    tuned = {k:v.clone() for k,v in learn.model.state_dict().items()}
    for a in (.3, 0, 1, .5):
        now = wise_ft(learn, a).model.state_dict()
        for k,v in tuned.items():
            want = (1-a)*kept[k]+a*v if v.is_floating_point() else v
            assert torch.allclose(now[k], want, atol=1e-6), k
    fit(learn, 1, 1e-2)
    new = {k:v.clone() for k,v in learn.model.state_dict().items()}
    assert torch.allclose(wise_ft(learn, 1).model.state_dict()['fc.weight' if 'fc.weight' in new else 'net.fc.weight'], new['net.fc.weight'])
    for a in (-1, 1.1, float('nan')):
        with pytest.raises(FitError, match='alpha must be'): wise_ft(learn, a)
    add_adapter(learn)
    with pytest.raises(FitError, match='merge_adapter'): wise_ft(learn)
    merge_adapter(learn)
    wise_ft(learn, .5)
    with pytest.raises(FitError, match='another network'): wise_ft(pictures(tmp_path), start=kept)

def rows(train, valid, **kw):
    return [dict(phase='fit', epoch=i+1, train_loss=t, valid_loss=v, **{k:o[i] for k,o in kw.items()}) for i,(t,v) in enumerate(zip(train, valid))]

@pytest.mark.parametrize('train,valid,k,says', [
    ([.5,.4,.3,.2], [.5,.4,.45,.5], 2, 'from epoch 3: for 2 epochs'), ([.5,.4,.3,.2], [.5,.4,.45,.5], 3, None),
    ([.5,.4,.3], [.5,.6,.7], 2, 'Stop after epoch 1'),
    ([.5,.4,.3,.2], [.5,.6,.55,.6], 2, None), ([.2,.3,.4,.5], [.2,.3,.4,.5], 2, None), ([.5,.4,.3], [.5,.4,.3], 2, None),
    ([], [], 2, None), ([.5], [.5], 2, None),
    ([.5,.4,.3,.2], [.5,.4,float('nan'),float('nan')], 2, None)])
def test_overfitting(train, valid, k, says):
    text = find_overfitting(rows(train, valid), k)
    assert text is None if says is None else says in text and 'KeepBest' in text

def test_overfitting_is_looked_for_in_each_phase():
    a,b = rows([.9,.8], [.5,.6]),rows([.7,.6], [.7,.8])
    assert find_overfitting(a+b) is None
    assert "in 'two' from epoch 4" in find_overfitting(a+[dict(h, phase='two') for h in rows([.9,.8,.7], [.5,.6,.7])])
    assert 'too sure' in find_overfitting(rows([.5,.4,.3], [.5,.6,.7], accuracy=[.5,.6,.7]))
    assert find_overfitting([dict(phase='x', epoch=1, train_loss=.5)]) is None

def test_a_small_network_over_fits_and_it_is_said(tmp_path, capsys):
    import matplotlib
    matplotlib.use('agg')
    learn = pictures(tmp_path)
    learn.history[:] = rows([.7,.5,.2,.1], [.7,.6,.8,1.1])
    ax = plot_curves(learn)
    assert len(ax.lines)==2 and 'Overfitting' in capsys.readouterr().out
    assert plot_curves(learn.history[:2], ax=ax) is ax and not capsys.readouterr().out

def test_warmup_cosine(tmp_path):
    class Rates(Callback):
        def before_fit(self): self.seen = []
        def before_step(self): self.seen.append([h['lr'] for h in self.opt.hypers])
    learn,rates = pictures(tmp_path, bs=2),Rates()
    with learn.no_bar(), learn.no_logging(): learn.fit_warmup_cosine(4, 1e-3, warmup=.25, decay=.5, cbs=[rates])
    seen = np.array(rates.seen)
    top = seen[:,-1].argmax()
    assert abs(top/len(seen)-.25)<.05 and seen[0,-1]<1e-4 and seen[-1,-1]<1e-4 and abs(seen[top,-1]-1e-3)<1e-4
    assert (np.diff(seen[:top,-1])>0).all() and (np.diff(seen[top:,-1])<0).all()
    assert np.allclose(seen[top,1:]*.5, seen[top,:-1])
    with learn.no_bar(), learn.no_logging(): learn.fit_warmup_cosine(1, slice(1e-5, 1e-3))
