"Figures are sums over what they are means of: the same with any batch size, with accumulated gradients, from the cache"
from contextlib import nullcontext
import pytest, torch
pytest.importorskip('soundfile')
from fastai.metrics import Perplexity
from fastai.optimizer import SGD
from sft_nb.core.losses import loss_weight
from sft_nb.data.load import load_data
from sft_nb.data.task import get_task
from sft_nb.training.cache import frozen_cache
from sft_nb.training.callbacks import Accumulate
from sft_nb.training.learner import sft_learner
from sft_nb.tasks.small_nets import small_ctc
from sft_nb.tasks.toys import make_toy

pytestmark = pytest.mark.usefixtures('home', 'one_thread')
RATES = ('dropout','activation_dropout','attention_dropout','layerdrop','encoder_layerdrop','decoder_layerdrop')

@pytest.fixture(params=['translation','speech','ctc','balanced'])
def kind(request): return request.param

@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    made = {o:make_toy(o, tmp_path_factory.mktemp(o)) for o in ('translation','speech','text')}
    return dict(translation=made['translation'], speech=made['speech'], balanced=made['text'],
                ctc=dict(made['speech'], checkpoint=str(small_ctc(tmp_path_factory.mktemp('ctc')/'net', 'abcdefghijklmnopqrstuvwxyz'))))

def learner(kind, toys, bs, **kw):
    task,toy = dict(ctc='speech', balanced='text').get(kind, kind),toys[kind]
    dls = load_data(task, toy['source'], valid=.5, checkpoint=toy['checkpoint'], batch_size=bs)
    learn = sft_learner(dls, opt_func=SGD, **({'class_weights':[3.,.5]} if kind=='balanced' else {}), **kw)
    for m in learn.model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
        for k in RATES:
            if isinstance(getattr(m, k, None), float): setattr(m, k, 0.)
    return learn

def quietly(learn, *args, cached=False, **kw):
    with learn.no_bar(), learn.no_logging(), frozen_cache(learn) if cached else nullcontext(): learn.fit(*args, **kw)
    return learn

def test_a_validation_is_the_same_in_any_batches(toys, kind):
    found = [learner(kind, toys, bs).validate()[0] for bs in (1, 3, 32)]
    assert found==pytest.approx([found[0]]*3, rel=1e-5)

def test_so_it_is_from_the_cache(toys, kind):
    live = learner(kind, toys, 32).validate()[0]
    for bs in (1, 3, 32):
        learn = quietly(learner(kind, toys, bs), 1, 0., wd=0., cached=True)
        assert learn.cached_groups and learn.history[0]['valid_loss']==pytest.approx(live, rel=1e-5)

@pytest.mark.parametrize('kind', ['translation','speech'])
def test_perplexity_is_over_tokens(toys, kind):
    found = [learner(kind, toys, bs, metrics=[Perplexity()]).validate() for bs in (1, 3, 32)]
    for loss,ppl in found: assert ppl==pytest.approx(torch.tensor(loss).exp().item(), rel=1e-5)
    assert [o[1] for o in found]==pytest.approx([found[0][1]]*3, rel=1e-4)

@pytest.mark.parametrize('cached', [False, True], ids=['live','cached'])
def test_an_accumulated_step_is_that_of_the_large_batch(toys, kind, cached):
    a,b = learner(kind, toys, 32),learner(kind, toys, 3)
    start = {n:p.detach().clone() for n,p in a.model.named_parameters()}
    for o,cbs in ((a, []), (b, Accumulate(1000))): quietly(o, 1, .1, wd=0., cached=cached, cbs=cbs)
    moved = max((p-start[n]).abs().max() for n,p in a.model.named_parameters())
    assert max((p-q).abs().max() for p,q in zip(a.model.parameters(), b.model.parameters()))<1e-3*moved

def test_the_weight_of_a_written_target_is_its_tokens(toys):
    for kind in ('translation','speech'):
        learn = learner(kind, toys, 32)
        y = learn.dls.valid.one_batch()[-1]
        assert loss_weight(learn.loss_func, (y,))==(y!=-100).sum() and (y==-100).any()
    learn = learner('ctc', toys, 32)
    assert loss_weight(learn.loss_func, learn.dls.valid.one_batch()[-1:])==8
