"The card of a saved folder: what a hub reads of it, what it says of metrics and limits, and that no row and no path of the data is in it"
import json
import numpy as np, pandas as pd, pytest
from huggingface_hub import ModelCard
from sft_nb.core.basics import FolderError
from sft_nb.data.load import load_data
from sft_nb.data.task import all_tasks
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.evaluation.changes import changed_rows
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.evaluation.tables import load_evaluation
from sft_nb.inspection.kept import keep_predictions, run_pages
from sft_nb.tasks.toys import make_toy
from sft_nb.training.learner import sft_learner

pytestmark = pytest.mark.usefixtures('home', 'one_thread')
# What a hub calls each task; pictures with a text have no name there
NAMES = dict(image='image-classification', text='text-classification', tokens='token-classification', translation='translation', speech='automatic-speech-recognition',
             audio='audio-classification', chat='text-generation', image_text=None)

def learner(task, folder, **kw):
    toy = make_toy(task, folder)
    return sft_learner(load_data(task, toy['source'], checkpoint=toy['checkpoint'], pretrained=toy['pretrained'], **{**toy['load'], **kw}), freeze=None)

def section(text, title): return text.split(f'## {title}\n')[1].split('\n## ')[0]

@pytest.mark.parametrize('task', sorted(all_tasks()))
def test_a_hub_reads_it(task, tmp_path):
    learn = learner(task, tmp_path/'toy')
    ev = evaluate(learn)
    folder = save_predictor(learn, tmp_path/'model', metrics=ev)
    text = (folder/'README.md').read_text(encoding='utf8')
    facts = ModelCard(text).data
    assert facts.pipeline_tag==NAMES[task] and facts.tags==['sft_nb'] and facts.library_name in ('timm','transformers','sft_nb') and facts.license
    assert {o.metric_type:o.metric_value for o in facts.eval_results}=={k:round(v, 6) for k,v in ev.metrics.items()}
    assert {o.task_type for o in facts.eval_results}=={NAMES[task] or 'other'} and {o.dataset_split for o in facts.eval_results}=={'validation'}
    table = ev.report().set_index('metric')
    for k,v in ev.metrics.items(): assert f'| {v:.4f} | {table.low[k]:.4f} to {table.high[k]:.4f} |' in section(text, 'Metrics').replace('\\', ''), k
    assert f'Of {len(ev):,} rows held out of training' in text and section(text, 'Limits').count('\n- ')>=2
    assert str(tmp_path) not in text and 'a local folder' in text or task in ('image','image_text')
    cells = [str(v) for c in learn.spec.task.input_columns for v in learn.spec.rows[c] if isinstance(v, str)]
    assert not [o for o in [*learn.spec.rows['item'], *cells] if len(o)>3 and o in text]
    kept = keep_predictions(ev, folder)
    again = load_evaluation(kept/'rows.parquet')
    assert kept==tmp_path/'model-predictions' and again.metrics==pytest.approx(ev.metrics) and list(run_pages(folder))==['predictions']
    assert len(changed_rows(ev, again))==0 and sorted(o.name for o in tmp_path.iterdir())==['model','model-predictions','toy']

def test_without_an_evaluation_it_says_so(tmp_path):
    text = load_predictor(save_predictor(learner('image', tmp_path/'toy'), tmp_path/'model', metrics={})).card
    assert 'saved without an evaluation' in section(text, 'Metrics') and ModelCard(text).data.eval_results is None
    assert '%' not in section(text, 'Metrics') and 'measured' not in section(text, 'Limits')

def test_given_metrics_have_no_interval(tmp_path):
    text = load_predictor(save_predictor(learner('image', tmp_path/'toy'), tmp_path/'model', metrics=dict(accuracy=.9))).card
    assert '| accuracy | 0.9000 | not known |' in text and 'of which rows is not known' in text

def test_numbers_are_no_classes(tmp_path):
    frame = pd.DataFrame(dict(text=[f'{i} words of text' for i in range(40)], label=np.linspace(1.5, 9.25, 40)))
    toy = make_toy('text', tmp_path/'toy')
    learn = sft_learner(load_data('text', frame, checkpoint=toy['checkpoint'], target_kind='number', **{k:v for k,v in toy['load'].items() if k not in ('label_delim',)}))
    facts = ModelCard(load_predictor(save_predictor(learn, tmp_path/'model')).card).data
    assert facts.pipeline_tag is None and {o.task_type for o in facts.eval_results}=={'other'} and 'mae' in {o.metric_type for o in facts.eval_results}

def test_an_opened_model_keeps_its_intervals(tmp_path):
    learn = learner('image', tmp_path/'toy')
    save_predictor(learn, tmp_path/'a')
    model = load_predictor(tmp_path/'a')
    save_predictor(model, tmp_path/'b')
    assert (tmp_path/'b'/'README.md').read_text()==(tmp_path/'a'/'README.md').read_text() and ' to ' in section(model.card, 'Metrics')
    save_predictor(model, tmp_path/'c', metrics=dict(accuracy=.5))
    assert 'measured' not in load_predictor(tmp_path/'c').info and 'not known' in section(load_predictor(tmp_path/'c').card, 'Metrics')
    other = evaluate(model, on=learn.spec.rows[['image','label']])
    save_predictor(model, tmp_path/'d', metrics=other)
    assert f'Of {len(other)} rows of other data' in load_predictor(tmp_path/'d').card

def test_what_was_measured_is_checked(tmp_path):
    folder = save_predictor(learner('image', tmp_path/'toy'), tmp_path/'model')
    info = json.loads((folder/'sft.json').read_text())
    (folder/'sft.json').write_text(json.dumps({**info, 'measured':{'on':'valid', 'rows':4, 'intervals':{'accuracy':['low','high']}}}))
    with pytest.raises(FolderError, match="'measured' should be"): load_predictor(folder)
