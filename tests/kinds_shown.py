"An evaluation of a toy of every kind of data, and one of the same rows by another model, for tests of what is looked at"
from sft_nb.data.load import load_data
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.tasks.toys import make_toy
from sft_nb.training.learner import sft_learner

KINDS = dict(image='image', text='text', translation='translation', speech='speech', image_text='image_text', chat='chat', tokens='tokens', audio='audio', numbers='text')

def toy_learner(kind, folder):
    "An untrained learner of a toy"
    task = KINDS[kind]
    toy = make_toy(task, folder/kind, **(dict(numbers=True) if kind=='numbers' else {}))
    more = dict(target_kind='number') if kind=='numbers' else {}
    return sft_learner(load_data(task, toy['source'], checkpoint=toy['checkpoint'], pretrained=toy.get('pretrained', True), **toy['load'], **more), lr=3e-3)

def two_evaluations(kind, folder, epochs=2):
    "(after training, before training) on the training rows"
    learn = toy_learner(kind, folder)
    with learn.no_bar(), learn.no_logging():
        before = evaluate(learn, on='train')
        learn.fit(epochs)
        after = evaluate(learn, on='train')
    return learn,after,before
