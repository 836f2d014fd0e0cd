"`learn.predict`, one item at a time"
import pytest
from sft_nb.core.basics import TaskError
from sft_nb.data.load import load_data
from sft_nb.tasks.toys import make_toy
from sft_nb.training.learner import sft_learner

@pytest.mark.parametrize('name,what', [*((name, 'texts that a model writes') for name in ('translation', 'chat', 'speech')), ('audio','sounds')])
def test_an_item_that_fastai_cannot_put_together_is_refused_in_words(name, what, tmp_path):
    toy = make_toy(name, tmp_path/'toy')
    learn = sft_learner(load_data(name, toy['source'], checkpoint=toy['checkpoint'], pretrained=toy['pretrained'], **toy['load']))
    with pytest.raises(TaskError, match=rf"cannot put {what} together \(task '{name}'\).*load_predictor"): learn.predict(learn.dls.valid_ds[0][0])
