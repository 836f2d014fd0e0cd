"Every task on a CUDA device that is not there: fits, the cache, evaluation and generation give the numbers of the CPU, and no tensor of the CPU meets one of the device"
import numpy as np, pytest, torch
from test_devices import case, CASES, TASKS
from pretend import CUDA, moved, Pretend, there
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.models import seq2seq
from sft_nb.training import cache
from sft_nb.training.learner import seeded

NAMES = [*TASKS, 'image_text', *CASES]

def learner(name, folder, pretends, freeze_to=None):
    with seeded(1): learn = case(name, folder, True)
    if freeze_to: learn.freeze_to(freeze_to)
    if pretends:
        moved(learn.model)
        learn.dls.to(CUDA)
    return learn

def fitted(learn, cached=False):
    with seeded(2), learn.no_bar(), learn.no_logging():
        if cached:
            with cache.frozen_cache(learn): learn.fit(2, 1e-3)
        else: learn.fit(1, 1e-3)
    return [float(o) for o in learn.recorder.losses]

def found(name, folder, pretends):
    "Losses of a fit of all, losses above the cache, metrics and predictions"
    live,held = learner(name, folder/'live', pretends),learner(name, folder/'held', pretends, 'head')
    losses = fitted(live),fitted(held, True)
    if pretends: assert all(there(p) for learn in (live, held) for p in learn.model.parameters())
    ev = evaluate(live)
    return losses,dict(ev.metrics),ev.rows.prediction.tolist()

@pytest.mark.parametrize('name', NAMES)
def test_a_task_does_there_what_it_does_here(name, tmp_path, home):
    here = found(name, tmp_path/'here', False)
    with Pretend() as mode: elsewhere = found(name, tmp_path/'there', True)
    assert mode.calls>100 and len(here[0][0])>1 and len(here[0][1])>1
    for a,b in zip(here[0], elsewhere[0]): np.testing.assert_allclose(b, a, rtol=1e-4)
    assert elsewhere[1]==pytest.approx(here[1], rel=1e-4) and elsewhere[2]==here[2]
