"One tag per word: read in every form, refused where it does not fit, learned over windows, scored as nervaluate scores, saved so that transformers says the same"
import io, json, random
import numpy as np, pandas as pd, pytest, torch, transformers
from sft_nb.cli import main
from sft_nb.core.basics import DataError, HeadError, TaskError
from sft_nb.core.tag_metrics import TagScores
from sft_nb.data.load import load_data
from sft_nb.data.tag_target import TagTarget
from sft_nb.data.task import get_task
from sft_nb.deployment.onnx_file import export_onnx
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.evaluation.tables import evaluate_table, load_evaluation
from sft_nb.inspection.inspector import Inspector
from sft_nb.tasks.toys import make_toy
from sft_nb.training.learner import sft_learner

@pytest.fixture(scope='module')
def toy(tmp_path_factory): return make_toy('tokens', tmp_path_factory.mktemp('tags'))

@pytest.fixture
def learn(toy, home, one_thread):
    learn = sft_learner(load_data('tokens', toy['source'], checkpoint=toy['checkpoint'], **toy['load']))
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(10, 5e-3, freeze_epochs=3)
    return learn

def rows_of(toy): return [json.loads(o) for o in open(toy['source'])]

def bio(tags):
    "Tags as IOB2 has them: what goes on behind something else begins"
    return [f'B{t[1:]}' if t[0]=='I' and was[1:]!=t[1:] else t for was,t in zip(['O', *tags], tags)]

def test_scores_are_those_of_nervaluate():
    "Entities that are right in ends and label, and half a point for those that overlap"
    from nervaluate import Evaluator
    rng,tags = random.Random(0),['O','B-a','I-a','B-b','I-b']
    for _ in range(100):
        true = [bio([rng.choice(tags) for _ in range(rng.randint(1, 9))]) for _ in range(4)]
        said = [bio([t if rng.random()<.6 else rng.choice(tags) for t in o]) for o in true]
        got,want = TagScores(true, said)(np.ones((1,4))),Evaluator(true, said, tags=['a','b'], loader='list').evaluate()['overall']
        assert np.allclose([got[k][0] for k in ('precision','recall','f1')], [want['strict'].precision, want['strict'].recall, want['strict'].f1])
        assert np.allclose([got[f'partial_{k}'][0] for k in ('precision','recall')], [want['partial'].precision, want['partial'].recall])
    assert got['accuracy'][0]==np.mean([a==b for t,o in zip(true, said) for a,b in zip(t, o)])

FORMS = dict(
    words=[dict(tokens=['Paul','left','New','York'], tags=['B-person','O','B-place','I-place'])],
    hub_names=[dict(tokens=['Paul','left','New','York'], ner_tags=['B-person','O','B-place','I-place'])],
    iob1=[dict(tokens=['Paul','left','New','York'], tags=['I-person','O','I-place','I-place'])],
    iobes=[dict(tokens=['Paul','left','New','York'], tags=['S-person','O','B-place','E-place'])],
    spans=[dict(text='Paul left New York', entities=[dict(start=0, end=4, label='person'), [10, 18, 'place']])])

@pytest.mark.parametrize('form', FORMS)
def test_every_form_becomes_the_same_rows(toy, form, tmp_path):
    (tmp_path/'rows.jsonl').write_text('\n'.join(json.dumps(o) for o in FORMS[form]*4))
    spec = load_data('tokens', tmp_path/'rows.jsonl', checkpoint=toy['checkpoint'], valid=.25).sft
    assert spec.vocab==['O','B-person','B-place','I-place'] and all(o==['B-person','O','B-place','I-place'] for o in spec.rows.tags)

def test_conll_numbers_and_parts_of_speech(toy, tmp_path):
    kw = dict(checkpoint=toy['checkpoint'], valid=.25)
    (tmp_path/'rows.txt').write_text('-DOCSTART- -X- O\n\n'+'Paul NNP B-person\nleft VBD O\n\n'*5)
    assert list(load_data('tokens', tmp_path/'rows.txt', **kw).sft.rows.tokens)==[['Paul','left']]*5
    numbers = pd.DataFrame(dict(tokens=[['Paul','left']]*5, tags=[[1,0]]*5))
    named = get_task('tokens').copy(target=TagTarget(names=['O','B-person']))
    assert load_data(named, numbers, **kw).sft.vocab==['O','B-person']
    spec = load_data('tokens', pd.DataFrame(dict(tokens=[['Paul','left']]*5, pos_tags=[['NOUN','VERB']]*5)), **kw).sft
    assert spec.vocab==['NOUN','VERB']
    ev = evaluate_table(pd.DataFrame(dict(target=[['NOUN','VERB']], prediction=[['NOUN','NOUN']])), task='tokens')
    assert ev.metrics['accuracy']==.5 and 'partial_f1' not in ev.metrics

def test_bad_rows_are_named_with_their_word(toy):
    bad = [dict(tokens=['in','York'], tags=['O','I-place']), dict(tokens=['a','b'], tags=['O']), dict(tokens=[], tags=[]), dict(tokens=['a',5], tags=['O','O']),
           dict(text='New York', entities=[[0,8,'place'],[4,8,'place']]), dict(text='Rome', entities=[[0,2,'place']])]
    good = [dict(tokens=['Paul','left'], tags=['B-person','O'])]*4
    with pytest.raises(DataError) as e: load_data('tokens', good+bad[:4], checkpoint=toy['checkpoint'])
    for o in ("row 4: word 2 'York': I-place after O", 'row 5: has 2 words and 1 tags', 'row 6: has no words', 'row 7: word 2 is a int (5)'): assert o in str(e.value)
    with pytest.raises(DataError) as e: load_data('tokens', [dict(text='Paul left', entities=[[0,4,'person']])]*4+bad[4:], checkpoint=toy['checkpoint'])
    for o in ("row 4: entities 'New York' (0 to 8) and 'York' (4 to 8) overlap", "row 5: entity 'Ro' (0 to 2) begins or ends within the word 'Rome'"): assert o in str(e.value)

def test_no_word_of_a_long_text_is_lost(learn, capsys):
    words = [o for i in range(400) for o in ('Paul','left','New','York','\u200b' if i==7 else 'in')]
    model,spec = learn.model,learn.spec
    long = pd.DataFrame(dict(tokens=[words, words[:40]], tags=[['O']*2000, ['O']*40]))
    ev = evaluate(learn, on=long)
    assert [len(o) for o in ev.rows.prediction]==[2000, 40] and sum(o=='B-person' for o in ev.rows.prediction[0])>300
    told = capsys.readouterr().err
    assert "words have no token of their own" in told and "'\\u200b', word 40" in told and 'read in windows' in told
    alone = evaluate(learn, on=long[1:]).rows.prediction[0]
    assert alone==ev.rows.prediction[1]
    x = next(iter(spec.task.item_loader(spec, long, 2)))[0]
    with torch.no_grad():
        want = model.eval()(x)
        assert want.shape[1]==2000 and torch.isinf(want[1,40:]).all()
        for b in model.borders(): assert torch.allclose(model.suffix(b, model.prefix(b, x)), want, atol=1e-5), b

def test_transformers_says_the_same(learn, tmp_path):
    model = load_predictor(save_predictor(learn, tmp_path/'model'))
    texts = ['Paul lives in New York', 'Anna left Rome', 'Omar likes San Marino']
    pipe = transformers.pipeline('token-classification', str(tmp_path/'model'), aggregation_strategy='first')
    out = model.predict(texts)
    assert sum(map(len, out.spans))>=5
    for text,spans,said in zip(texts, out.spans, pipe(texts)):
        assert [(o['start'],o['end'],o['entity_group']) for o in said]==[(o['start'],o['end'],o['label']) for o in spans]
        assert all(text[o['start']:o['end']]==o['text'] for o in spans)
        assert np.allclose([o['score'] for o in said], [o['probability'] for o in spans], atol=1e-5)

def test_evaluated_saved_shown(learn, tmp_path):
    ev = evaluate(learn)
    assert list(ev.metrics)==['precision','recall','f1','partial_precision','partial_recall','partial_f1','accuracy'] and ev.metrics['f1']>.5
    report = ev.report().set_index('metric')
    assert (report.low<=report.value).all() and (report.value<=report.high).all() and list(ev.report(by_class=True)['class'])==['person','place']
    assert list(ev.baselines())==['majority','dictionary'] and ev.baselines()['majority'].metrics['f1']==0
    with pytest.raises(TaskError, match='no classes'): ev.confusion()
    ev.rows['prediction'] = [['O','O',*o[2:]] for o in ev.rows.prediction]
    wrong = evaluate_table(ev.rows.assign(target=ev.rows.target)[['item','tokens','target','prediction']], task='tokens')
    assert 'missed' in wrong.rows.errors[0]
    again = load_evaluation(wrong.save(tmp_path/'ev.parquet'))
    assert again.metrics==wrong.metrics
    look = Inspector(again, marks=tmp_path/'marks.jsonl')
    look.w['error'].value = 'missed'
    assert len(look.sel)==len(ev) and 'missed' in look.rows_pane.html
    look.w['error'].value = 'spurious'
    assert len(look.sel)==0
    page = again.to_html(tmp_path/'page.html').read_text()
    assert 'f-error' in page and 'sft-gold' in page

def test_from_a_shell(toy, home, tmp_path, capsys):
    assert main(['finetune', 'tokens', str(toy['source']), '--out', str(tmp_path/'out'), '--checkpoint', toy['checkpoint'], '--epochs', '6', '--lr', '5e-3'])==0
    metrics = json.loads((tmp_path/'out'/'metrics.json').read_text())
    assert metrics['n_train']==13 and 0<=metrics['f1']<=1 and 'partial_f1' in metrics and 'tokens' in (tmp_path/'out'/'report.html').read_text()
    capsys.readouterr()
    assert main(['predict', str(tmp_path/'out'), 'Paul left Rome', 'Anna likes Oslo'])==0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table)==['item','prediction','probability','spans'] and len(table.prediction[0].split())==3 and isinstance(json.loads(table.spans[0]), list)
    assert main(['evaluate', str(tmp_path/'out'), str(toy['source'])])==0
    assert json.loads(capsys.readouterr().out)['n']==16
    assert main(['evaluate', str(tmp_path/'out'), 'nothing.conll'])==2
    assert capsys.readouterr().err.count('\n')==1

def test_exported_file_gives_the_scores_of_tokens(learn, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    export_onnx(learn, tmp_path/'tags.onnx')
    tok = learn.spec.checkpoint.tokenizer()
    x = tok(['Paul left New York in Rome'], return_tensors='np')
    out = runtime.InferenceSession(str(tmp_path/'tags.onnx')).run(None, {k:x[k] for k in ('input_ids','attention_mask')})[0]
    whole = learn.model.eval()({k:torch.tensor(x[k]) for k in ('input_ids','attention_mask')}).detach()
    assert out.shape==whole.shape and np.allclose(out, whole, atol=1e-4)

def test_heads_and_options(toy, home, tmp_path, one_thread):
    dls = load_data('tokens', toy['source'], checkpoint=toy['checkpoint'], max_length=12, overlap=4, **toy['load'])
    learn = sft_learner(dls, head=[16])
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, freeze_epochs=1)
    model = load_predictor(save_predictor(learn, tmp_path/'model'))
    assert list(model.predict(list(evaluate(learn).rows.tokens)).prediction)==list(evaluate(learn).rows.prediction)
    with pytest.raises(DataError, match='overlap must be a whole number .*, got 11'): load_data('tokens', toy['source'], checkpoint=toy['checkpoint'], max_length=12, overlap=11)
    with pytest.raises(HeadError, match='feature maps'): sft_learner(dls, head='flatten')
