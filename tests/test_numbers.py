"A number in the place of a class: read, learned, judged, saved, and refused where it is none"
import json
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from sft_nb.cli import main
from sft_nb.core.basics import DataError, FitError, FolderError, TaskError
from sft_nb.data.load import load_data
from sft_nb.data.problems import BadRows
from sft_nb.data.task import get_task
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.evaluation.calibration import calibrate
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.evaluation.tables import evaluate_table, load_evaluation
from sft_nb.tasks.toys import make_toy
from sft_nb.training.learner import sft_learner
from sft_nb.training.resume import Resume

@pytest.fixture(scope='module')
def toy(tmp_path_factory): return make_toy('text', tmp_path_factory.mktemp('ratings'))

def rated(toy, n=60, by=.07):
    "Sentences whose number follows from their mood, and a part that does not"
    rows = pd.read_csv(toy['source'])
    return pd.DataFrame(dict(text=[f'{rows.text[i%len(rows)]} {i}' for i in range(n)], label=[100+50*(rows.label[i%len(rows)]=='good')+by*i for i in range(n)]))

@pytest.fixture
def learn(toy, home, one_thread):
    learn = sft_learner(load_data('text', rated(toy), checkpoint=toy['checkpoint'], valid=.5))
    with learn.no_bar(), learn.no_logging(): learn.fine_tune()
    return learn

def test_a_column_that_is_plainly_a_number(toy, home, capsys):
    kw = dict(checkpoint=toy['checkpoint'])
    dls = load_data('text', rated(toy), **kw)
    assert dls.sft.task.target.kind=='number' and 'different values with fractions' in capsys.readouterr().err
    train = dls.sft.split('train').label.astype(float)
    assert dls.sft.scaling==dict(mean=pytest.approx(train.mean()), scale=pytest.approx(train.std(ddof=0)))
    assert abs(float(dls.train_ds[0][1]))<3 and dls.sft.vocab==[]
    stars = rated(toy).assign(label=[i%5+1 for i in range(60)])
    for frame in (stars, stars.assign(label=stars.label+.5), stars.assign(label=stars.label.astype(float))):
        assert load_data('text', frame, **kw).sft.task.target.kind=='class'
    assert load_data('text', stars, target_kind='number', **kw).sft.task.target.kind=='number'
    years = rated(toy).assign(label=[1900+i//2 for i in range(60)])
    assert load_data('text', years, **kw).sft.vocab==[str(1900+i) for i in range(30)]

def test_from_the_solved_head_to_a_saved_interval(learn, tmp_path):
    assert learn.state.head_penalty is not None
    ev = evaluate(learn)
    assert list(ev.metrics)==['mae','rmse','r2','spearman','coverage','width'] and ev.metrics['mae']<15 and ev.metrics['r2']>.6
    report = ev.report().set_index('metric')
    assert (report.low<=report.value).all() and (report.value<=report.high).all() and report.value['coverage']>.6
    assert list(ev.baselines())==['mean','words','untuned'] and ev.compare('mean').set_index('metric').verdict['mae']=='better'
    assert ev.show_worst(3).loss.is_monotonic_decreasing and ev.task.target.pictures(ev)['Residuals'].size[0]>400
    with pytest.raises(TaskError, match='has no classes'): ev.confusion()
    model = load_predictor(save_predictor(learn, tmp_path/'model'))
    out = model.predict(list(ev.rows.text))
    assert np.allclose(out.prediction, ev.rows.prediction, rtol=1e-5) and out.probability.isna().all()
    errors = np.sort(np.abs(ev.rows.prediction-ev.rows.target))
    assert np.allclose(out.high-out.prediction, errors[int(np.ceil(.9*31))-1], rtol=1e-4) and np.allclose(out.high-out.prediction, out.prediction-out.low)
    assert model.metrics['mae']==pytest.approx(ev.metrics['mae']) and 'within' in model.card and 'a number' in repr(model)
    other = evaluate(model, on=ev.rows[['text','target']].rename(columns={'target':'label'}))
    assert other.metrics['coverage']>=.9 and other.task.target.kind=='number'
    assert list(model.predict(['a day', 'an evening']).columns)==['item','prediction','probability','low','high']

def test_a_chosen_interval_is_kept(learn, tmp_path):
    found = calibrate(learn)
    assert list(found.table.level)==[.5,.8,.9] and learn.spec.scaling['margin']==pytest.approx(found.table.margin[2])
    ev = evaluate(learn)
    assert np.allclose(ev.rows.high-ev.rows.low, 2*learn.spec.scaling['margin'])
    learn.spec.scaling['margin'] = 7.
    save_predictor(learn, tmp_path/'model')
    info = json.loads((tmp_path/'model'/'sft.json').read_text())
    assert info['target']==dict(kind='number', **learn.spec.scaling) and info['target']['margin']==7
    with pytest.raises(DataError, match="'test' rows|test rows are not for calibration"): calibrate(learn, on='test')
    for odd in ({'kind':'number','scale':0}, {'kind':'number','scale':'2'}, 'number', {'kind':'tint'}):
        (tmp_path/'model'/'sft.json').write_text(json.dumps(dict(info, target=odd)))
        with pytest.raises(FolderError): load_predictor(tmp_path/'model')

def test_what_is_no_number_is_named(toy, home):
    kw = dict(checkpoint=toy['checkpoint'], target_kind='number')
    frame = rated(toy).astype(dict(label=object))
    frame.loc[3,'label'],frame.loc[4,'label'],frame.loc[5,'label'],frame.loc[7,'label'] = '3,5','4.5','many',float('inf')
    with pytest.raises(DataError) as e: load_data('text', frame, **kw)
    for words in ("label '3,5' is not a number; write decimals with a point", "label 'many' is not a number", 'label inf is not finite'): assert words in str(e.value)
    assert len(load_data('text', frame, bad='skip', **kw).sft.rows)==57
    with pytest.raises(DataError, match='one value only'): load_data('text', frame.assign(label=1.5), **kw)
    with pytest.raises(TaskError, match="'color'.*Valid: 'class', 'number'"): load_data('text', frame, **{**kw, 'target_kind':'color'})
    with pytest.raises(TaskError, match="task 'speech' has no such target"): load_data('speech', frame, target_kind='number')
    dls = load_data('text', rated(toy), **kw)
    with pytest.raises(FitError, match='is for classes'): sft_learner(dls, class_weights='balanced')
    with pytest.raises(FitError, match='Did you mean'): sft_learner(dls, loss='hubert')
    assert sft_learner(dls, loss='huber').loss_func.func.__class__.__name__=='HuberLoss'

def test_corrections_and_kept_evaluations(toy, home, learn, tmp_path):
    ev = evaluate(learn)
    again = load_evaluation(ev.save(tmp_path/'ev.parquet'))
    assert again.metrics==ev.metrics and again.task.target.kind=='number'
    table = ev.rows[['text','target','prediction']]
    table.to_csv(tmp_path/'said.csv', index=False)
    assert evaluate_table(tmp_path/'said.csv', 'text').metrics['mae']==pytest.approx(ev.metrics['mae'])
    with pytest.raises(DataError, match="'much' is not a number"): evaluate_table(table.assign(prediction='much'), 'text', target_kind='number')
    dls = load_data('text', rated(toy), checkpoint=toy['checkpoint'], corrections=pd.DataFrame(dict(item=['row 0'], mark=['relabel'], label=['7.5'])), target_kind='number')
    assert dls.sft.rows.set_index('item').label['row 0']==7.5

def test_the_head_of_the_library(toy, home, tmp_path):
    learn = sft_learner(load_data('text', rated(toy), checkpoint=toy['checkpoint']), head='hf')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    folder = save_predictor(learn, tmp_path/'model')
    net,tok = AutoModelForSequenceClassification.from_pretrained(folder),AutoTokenizer.from_pretrained(folder)
    assert net.config.problem_type=='regression' and net.config.num_labels==1
    said = net(**tok('a fine warm day', return_tensors='pt')).logits.item()
    s = learn.spec.scaling
    assert load_predictor(folder).predict(['a fine warm day']).prediction[0]==pytest.approx(said*s['scale']+s['mean'], rel=1e-4)

def test_onnx_is_in_the_unit_of_the_data(learn, tmp_path):
    pytest.importorskip('onnxruntime')
    import onnx, onnxruntime
    from sft_nb.deployment.onnx_file import export_onnx
    path = export_onnx(learn, tmp_path/'model.onnx')
    x = {k:v.cpu().numpy() for k,v in learn.spec.task.onnx_inputs(learn.model, learn.spec).items()}
    said = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider']).run(None, x)[0]
    assert 50<said[0,0]<220
    facts = json.loads(next(o.value for o in onnx.load(path).metadata_props if o.key=='sft_nb'))
    assert facts['target']['scale']==pytest.approx(learn.spec.scaling['scale'])

def test_on_the_command_line(toy, home, tmp_path, capsys):
    frame = rated(toy).round(0).astype(dict(label=int))
    frame.to_csv(tmp_path/'ratings.csv', index=False)
    words = ['finetune','text',str(tmp_path/'ratings.csv'),'--checkpoint',toy['checkpoint'],'--device','cpu','--out']
    assert main([*words, str(tmp_path/'model'), '--option', 'target_kind=number'])==0
    assert capsys.readouterr().out.startswith('mae ')
    metrics = json.loads((tmp_path/'model'/'metrics.json').read_text())
    assert {'mae','rmse','r2','spearman','n_train','n_valid','seconds_head','seconds_finetune'}<=set(metrics)
    assert 'Residuals' in (tmp_path/'model'/'report.html').read_text()
    assert main(['predict', str(tmp_path/'model'), 'a fine warm day', '--device', 'cpu', '--as-items'])==0
    head,row = capsys.readouterr().out.splitlines()
    assert head=='item,prediction,probability,low,high' and float(row.split(',')[3])<float(row.split(',')[1])<float(row.split(',')[4])
    assert main(['evaluate', str(tmp_path/'model'), str(tmp_path/'ratings.csv'), '--device', 'cpu'])==0
    assert 'coverage' in json.loads(capsys.readouterr().out)
    assert main([*words, str(tmp_path/'other'), '--option', 'target_kind=price'])==2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err)==1 and "target_kind='price'" in err[0]

def test_the_inspector_and_its_page(learn, tmp_path):
    pytest.importorskip('ipywidgets')
    from sft_nb.inspection.inspector import Inspector
    ev = evaluate(learn)
    ins = Inspector(ev, marks=tmp_path/'marks.jsonl')
    assert list(ins.tabs.titles)==['Rows','Residuals'] and 'residual' in ins.w and 'probability' not in ins.w
    bars = ins.sel.residual_bars()
    assert bars[['correct','wrong']].to_numpy().sum()==len(ev)
    at = int((bars.correct+bars.wrong).argmax())
    ins._show_residuals(str(at))
    off = ev.rows.prediction-ev.rows.target
    assert len(ins.sel)==int(((off>=bars.low[at]-1e-9)&(off<=bars.high[at]+1e-9)).sum())<len(ev)
    ins.clear_filters()
    ins.look_at(0)
    ins.relabel('12.5')
    assert ins.marks.table().label[0]=='12.5' and len(ins.sel)==len(ev)
    page = ev.to_html(tmp_path/'page.html').read_text()
    assert 'residual from' in page and 'id="threshold"' not in page and 'off by' in page

class Stop(Callback):
    "Stops once at a step of a phase"
    at = None
    def before_batch(self):
        if self.training and (self.learn.phase, self.train_iter)==Stop.at:
            Stop.at = None
            raise KeyboardInterrupt

def test_a_stopped_run_goes_on(toy, home, one_thread, tmp_path):
    def run(folder=None, at=None):
        Stop.at = at
        learn = sft_learner(load_data('text', rated(toy), checkpoint=toy['checkpoint'], batch_size=8))
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(2, 1e-3, cbs=[Stop(), *([Resume(folder)] if folder else [])])
        return learn
    whole = run()
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'run', ('finetune',4))
    again = run(tmp_path/'run')
    assert all(torch.equal(v, again.model.state_dict()[k]) for k,v in whole.model.state_dict().items()) and again.spec.scaling==whole.spec.scaling

def test_a_check_says_what_the_numbers_are(toy, home):
    from sft_nb.diagnosis.check import check_data
    check = check_data('text', rated(toy), checkpoint=toy['checkpoint'], max_items=40)
    assert 'a number, 10' in dict(zip(check.facts.what, check.facts.value))['target'] and not any('class in proportion' in o for o in check.messages)

def test_decimal_commas(toy, tmp_path, capsys):
    "A table as Excel writes it in many countries; pairs of texts with a score"
    lines = [f'frage {i};antwort {i};{i%7},{i:02}' for i in range(40)]
    (tmp_path/'pairs.csv').write_text('\n'.join(['frage;antwort;score', *lines]))
    how = dict(checkpoint=toy['checkpoint'], input=['frage','antwort'], target='score')
    dls = load_data('text', tmp_path/'pairs.csv', valid=.5, **how)
    assert dls.sft.task.target.kind=='number' and sorted(dls.sft.rows.label)==sorted(float(f'{i%7}.{i:02}') for i in range(40))
    assert '40 numbers have a decimal comma, such as 0,00, which is read as 0' in capsys.readouterr().err
    assert 'classes' not in repr(dls) and '40' in repr(dls)
    learn = sft_learner(dls)
    save_predictor(learn, tmp_path/'many')
    assert 'no interval' not in capsys.readouterr().err
    few = dls.sft.rows.assign(text=[o[0] for o in dls.sft.rows.text])[['text','label']][:12]
    save_predictor(sft_learner(load_data('text', few, target_kind='number', checkpoint=toy['checkpoint'])), tmp_path/'few')
    assert 'have no interval (low, high): 2 held-out rows are too few' in capsys.readouterr().err
    (tmp_path/'odd.csv').write_text('\n'.join(['frage;antwort;score', *lines, 'a;b;2.5']))
    with pytest.raises(BadRows, match='write decimals with a point'): load_data('text', tmp_path/'odd.csv', target_kind='number', **how)
