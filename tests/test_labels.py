"How a class is spelt: one rule in training, validation, evaluation, corrections and audit, wherever the labels come from"
import csv, json
import pandas as pd, pytest
from sft_nb.core.basics import DataError
from sft_nb.data.corrections import Marks
from sft_nb.data.load import load_data
from sft_nb.data.problems import BadRows
from sft_nb.data.task import get_task
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.diagnosis.audit import audit
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.evaluation.tables import evaluate_table
from sft_nb.training.learner import sft_learner
from sft_nb.tasks.toys import make_toy

TEXTS = [f'fine day {i}' for i in range(6)]+[f'dull rain {i}' for i in range(6)]

@pytest.fixture(scope='module')
def bert(tmp_path_factory): return make_toy('text', tmp_path_factory.mktemp('net'))['checkpoint']

def two(a, b): return [a]*6+[b]*6

def to_csv(path, labels, **more):
    pd.DataFrame(dict(text=TEXTS[:len(labels)], label=labels, **more)).to_csv(path, index=False)
    return path

def to_jsonl(path, labels):
    path.write_text(''.join(json.dumps(dict(text=t, label=l))+'\n' for t,l in zip(TEXTS, labels)))
    return path

def to_frame(path, labels): return pd.DataFrame(dict(text=TEXTS, label=labels))

def to_parquet(path, labels):
    to_frame(path, labels).to_parquet(path)
    return path

def to_dataset(path, labels):
    datasets = pytest.importorskip('datasets')
    return datasets.Dataset.from_dict(dict(text=TEXTS, label=labels))

SOURCES = [to_csv, to_jsonl, to_frame, to_parquet, to_dataset]

def vocab(source, bert, **kw): return load_data('text', source, checkpoint=bert, **kw).sft.vocab

def model(source, bert, folder, **kw):
    save_predictor(sft_learner(load_data('text', source, checkpoint=bert, **kw)), folder, metrics={})
    return load_predictor(folder, device='cpu')

@pytest.mark.parametrize('make', SOURCES)
@pytest.mark.parametrize('labels,names', [
    (two(1., 0.), ['0','1']), (two('1.0', '0.0'), ['0','1']), (two(True, False), ['False','True']), (two('TRUE', 'FALSE'), ['False','True']), (two('true', 'False'), ['False','True']),
    (two('Cafe\u0301', 'bar'), ['Caf\xe9','bar']), (['pos','pos\u200b']*3+['neg','\ufeffneg']*3, ['neg','pos']), (['pos','pos ']*3+['neg','\tneg']*3, ['neg','pos'])])
def test_one_spelling_from_every_source(bert, tmp_path, make, labels, names):
    assert vocab(make(tmp_path/f'data{dict(to_csv=".csv", to_jsonl=".jsonl", to_parquet=".parquet").get(make.__name__, "")}', labels), bert)==names

@pytest.mark.parametrize('labels', [['007','7']*6, ['1e3','1000']*6, ['1.1','1.10']*6, ['1.0','1.10']*6, ['true','half-true']*6, ['New York','Rome']*6])
def test_other_names_stay_as_they_are(bert, tmp_path, labels, capsys):
    assert set(vocab(to_csv(tmp_path/'data.csv', labels), bert))==set(labels)
    assert 'spelling' not in capsys.readouterr().err

def test_a_changed_spelling_is_said_once(bert, tmp_path, capsys):
    vocab(to_csv(tmp_path/'data.csv', two('1.0', '0.0')), bert)
    assert capsys.readouterr().err.count("Labels in another spelling are read by their meaning: '1.0' as '1', '0.0' as '0'\n")==1

def test_case_is_said_and_never_folded(bert, tmp_path, capsys):
    assert vocab(to_csv(tmp_path/'data.csv', ['pos','POS']*3+['New York','New  york']*3), bert)==['New  york','New York','POS','pos']
    assert "differ only in case or white space: 'New  york' (3), 'New York' (3); 'POS' (3), 'pos' (3)." in capsys.readouterr().err

def test_quotes_in_a_cell(bert, capsys):
    with pytest.raises(BadRows) as e: vocab(to_frame(None, ['"pos"']*2+['pos']*4+['neg']*6), bert)
    assert list(e.value.problems.problem)==["label '\"pos\"' has quotes around it, and 'pos' is a class too: remove the quotes"]*2
    assert vocab(to_frame(None, two('"pos"', '"neg"')), bert)==['"neg"','"pos"']
    assert '2 of 2 classes have quotes around their names' in capsys.readouterr().err

def test_half_a_character_in_a_label(bert, tmp_path):
    source = to_jsonl(tmp_path/'d.jsonl', two('pos', 'neg')[:-1]+['neg\ud83d'])
    with pytest.raises(BadRows, match='d.jsonl line 12: label .* holds half of a character'): vocab(source, bert)
    assert len(load_data('text', source, checkpoint=bert, bad='skip').sft.rows)==11

def test_a_lone_class_that_looks_like_another_is_named(bert):
    with pytest.raises(BadRows, match="the only item of class 'Neg': a class needs two; is it 'neg', which has 5?"): vocab(to_frame(None, two('pos', 'neg')[:-1]+['Neg']), bert)

@pytest.mark.parametrize('spelt', [two(1, 0), two(1., 0.), two('1', '0'), two('1.0', '0.0')])
@pytest.mark.parametrize('trained', [two('1.0', '0.0'), two(1, 0)])
def test_numbers_in_evaluation(bert, tmp_path, trained, spelt):
    p = model(to_frame(None, trained), bert, tmp_path/'m')
    for make in (to_csv, to_frame, to_jsonl):
        ev = evaluate(p, make(tmp_path/f'later{".csv" if make is to_csv else ".jsonl"}', spelt))
        assert list(ev.rows.target)==two('1', '0')

@pytest.mark.parametrize('old,now', [(['0.0','1.0'],[0,1]), (['FALSE','TRUE'],[False,True]), (['Cafe\u0301','bar'],['Caf\xe9','bar']), (['neg\u200b','pos'],['neg','pos'])])
def test_a_folder_with_names_of_an_older_version(bert, tmp_path, old, now):
    model(to_frame(None, two('a', 'b')), bert, tmp_path/'m')
    f = tmp_path/'m/sft.json'
    f.write_text(json.dumps({**json.loads(f.read_text()), 'vocab':old}))
    p = load_predictor(tmp_path/'m', device='cpu')
    for names in (old, now): assert list(evaluate(p, to_csv(tmp_path/'later.csv', two(*names))).rows.target)==two(*old)

def test_case_in_evaluation_is_asked_about(bert, tmp_path):
    p = model(to_frame(None, two('pos', 'neg')), bert, tmp_path/'m')
    with pytest.raises(BadRows, match="label 'POS' is not a class of the model. Did you mean 'pos'"): evaluate(p, to_frame(None, two('POS', 'neg')))

def test_validation_data_of_their_own(bert, tmp_path):
    dls = load_data('text', to_frame(None, two('TRUE', 'maybe')), valid=to_csv(tmp_path/'later.csv', two(True, 'maybe')), checkpoint=bert)
    assert dls.sft.vocab==['TRUE','maybe'] and set(dls.sft.split('valid').label)=={'TRUE','maybe'}

def test_corrections_are_spelt_as_the_data(bert, tmp_path):
    marks = Marks(tmp_path/'marks.jsonl')
    rows = load_data('text', to_frame(None, two('1.0', 'caf\xe9')), checkpoint=bert).sft.rows
    first,last = rows['item'].iloc[0],rows['item'].iloc[-1]
    marks.mark(first, 'relabel', label='cafe\u0301\u200b', was=1.)
    marks.mark(last, 'relabel', label=1, was='caf\xe9')
    again = load_data('text', to_frame(None, two('1.0', 'caf\xe9')), checkpoint=bert, corrections=marks).sft
    assert (again.vocab, again.rows.label.iloc[0], again.rows.label.iloc[-1])==(['1.0','caf\xe9'],'caf\xe9','1.0')

@pytest.mark.parametrize('labels', [[[1,0,1]]*6+[[0,1,0]]*6, two([1,0], [0,1]), [[True,False]]*6+[[False,True]]*6, two(['0','1','0'], ['1','0','0'])])
def test_one_hot_lists_are_refused(bert, tmp_path, labels):
    for source in (to_jsonl(tmp_path/'d.jsonl', labels), to_frame(None, labels), to_parquet(tmp_path/'d.parquet', labels)):
        with pytest.raises(DataError, match='one-hot.*Valid: the name of a class, or a list of names') as e: vocab(source, bert)
        assert ('d.jsonl line 1' in str(e.value)) == (str(source).endswith('.jsonl'))

def test_lists_as_text_and_probabilities_are_refused(bert, tmp_path):
    for labels in ([str(['a','b'])]*6+[str(['a'])]*6, two('[1, 0]', '[0, 1]')):
        with pytest.raises(DataError, match='is the text of a list.*label_delim'): vocab(to_csv(tmp_path/'d.csv', labels), bert)
    with pytest.raises(DataError, match='a probability for each class'): vocab(to_frame(None, two([.9,.1], [.2,.8])), bert)
    with pytest.raises(DataError, match='one-hot'): vocab(to_csv(tmp_path/'d.csv', two('1;0;1', '0;0;1')), bert, label_delim=';')

def test_lists_of_classes_that_are_numbers(bert, tmp_path):
    assert vocab(to_frame(None, [[0],[1],[0,1]]*4), bert)==['0','1']
    p = model(to_frame(None, [[0.],[1.],[0,'1.0']]*4), bert, tmp_path/'m')
    assert list(evaluate(p, to_frame(None, [['0'],[1.],['1.0',0]]*4)).rows.target[:3])==[['0'],['1'],['0','1']]

def test_an_empty_label_is_a_choice(bert, tmp_path):
    f = to_csv(tmp_path/'d.csv', ['a;b','','a','b']*3)
    with pytest.raises(BadRows, match=r"d.csv line 3: empty label: an item of none of the classes is written \[\], or pass empty_label='none'"): vocab(f, bert, label_delim=';')
    for source,kw in ((f, dict(empty_label='none')), (to_csv(tmp_path/'e.csv', ['a;b','[]','a','b']*3), {})):
        sft = load_data('text', source, checkpoint=bert, label_delim=';', **kw).sft
        assert (sft.vocab, sft.rows.label.tolist()[:3])==(['a','b'], [['a','b'],[],['a']])
    p = model(f, bert, tmp_path/'m', label_delim=';', empty_label='none')
    assert list(evaluate(p, f).rows.target[:3])==[['a','b'],[],['a']]
    with pytest.raises(DataError, match="empty_label='no'. Valid: 'raise'"): vocab(f, bert, label_delim=';', empty_label='no')
    with pytest.raises(BadRows, match='line 3: empty label'): vocab(f, bert, empty_label='none')

def test_evaluation_speaks_of_rows_as_loading_does(bert, tmp_path):
    p,f = model(to_frame(None, two('a', 'b')), bert, tmp_path/'m'),tmp_path/'d.csv'
    with open(f, 'w', newline='') as out: csv.writer(out).writerows([('text','label'), *zip(TEXTS, ['\u200b',*two('a', 'b')[1:]]), ('\u200b','a'), ('more','a','b'), ('same',' ')])
    with pytest.raises(BadRows) as loading: load_data('text', f, checkpoint=bert)
    with pytest.raises(BadRows) as judging: evaluate(p, f)
    assert str(loading.value)==str(judging.value) and len(judging.value.problems)==4
    assert len(evaluate(p, f, bad='skip'))==11

def test_audit_finds_names_that_look_alike(bert):
    labels = ['positive']*20+['negative']*20+['Positive']*2+['postive']*2+['n\xe9gative']*2
    a = audit(load_data('text', pd.DataFrame(dict(text=[f'day {i} of the year' for i in range(46)], label=labels)), checkpoint=bert))
    found = a.findings[a.findings.kind=='names'].what.tolist()
    assert found==["classes that differ in case or white space: 'positive' (20), 'Positive' (2)", "classes that differ in accents: 'negative' (20), 'n\xe9gative' (2)",
                   "classes that differ in one letter: 'positive' (20), 'postive' (2)"]

def test_tables_of_predictions():
    ev = evaluate_table(pd.DataFrame(dict(target=['1.0','0.0','1.0'], prediction=[1,0,0])), task='text')
    assert (ev.vocab, list(ev.rows.correct))==(['0','1'], [True,True,False])
    ev = evaluate_table(pd.DataFrame({'target':['TRUE','FALSE'], 'True':[.9,.2], 'False':[.1,.8]}), task='text')
    assert (ev.vocab, list(ev.rows.prediction))==(['False','True'], ['True','False'])
    ev = evaluate_table(pd.DataFrame(dict(target=['Cafe\u0301','bar'], prediction=['Caf\xe9','bar\u200b'])), task='text')
    assert list(ev.rows.correct)==[True,True]
    with pytest.raises(DataError, match="Column 'target' is empty in 1 of 2 rows"): evaluate_table(pd.DataFrame(dict(target=['a','\u200b'], prediction=['a','a'])), task='text')
