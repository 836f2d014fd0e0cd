"Every row has a name of its own, whatever the data come as; by that name it is left out, corrected and found again, and what the audit suggests works"
import random
import pandas as pd, pytest
from datasets import Dataset, DatasetDict
from PIL import Image
from sft_nb.core.basics import DataError
from sft_nb.data.task import get_task
from sft_nb.data.problems import BadRows
from sft_nb.data.load import load_data
from sft_nb.data.corrections import Marks
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.diagnosis.audit import audit
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.evaluation.tables import evaluate_table
from sft_nb.training.learner import sft_learner
from sft_nb.tasks.toys import make_toy

NET = dict(checkpoint='timm:test_resnet', pretrained=False, augment=False)

@pytest.fixture(scope='module')
def bert(tmp_path_factory): return make_toy('text', tmp_path_factory.mktemp('toy'))['checkpoint']

@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch): monkeypatch.setenv('SFT_NB_HOME', str(tmp_path/'home'))

def words(i):
    "A text like no other"
    rng = random.Random(i)
    return ' '.join(''.join(rng.choices('aeioumnrst', k=rng.randint(3, 8))) for _ in range(6))

def days(n=24): return pd.DataFrame(dict(text=[words(i) for i in range(n)], label=['pos' if i%2 else 'neg' for i in range(n)]))

def named(index): return days().set_axis(index)

def parquet(tmp_path):
    days().to_parquet(tmp_path/'days.parquet')
    return tmp_path/'days.parquet'

def csv(tmp_path):
    days().to_csv(tmp_path/'days.csv', index=False)
    return tmp_path/'days.csv'

def excel(tmp_path):
    pytest.importorskip('openpyxl')
    days().to_excel(tmp_path/'days.xlsx', index=False)
    return tmp_path/'days.xlsx'

SOURCES = dict(
    frame=lambda _: (days(),{}), words=lambda _: (named([f'{c} review' for c in 'abcdefghijklmnopqrstuvwx']),{}),
    levels=lambda _: (named(pd.MultiIndex.from_product([['x y','x'],['a','y a',*range(10)]])),{}), again=lambda _: (named([*range(12)]*2),{}),
    mixed=lambda _: (named(['1',1,*range(2, 24)]),{}), dates=lambda _: (named(pd.date_range('2024-01-01', periods=24, freq='h')),{}),
    dataset=lambda _: (Dataset.from_pandas(days()),{}), parts=lambda _: (DatasetDict(train=Dataset.from_pandas(days()), test=Dataset.from_pandas(days(6))),{}),
    csv=lambda t: (csv(t),{}), excel=lambda t: (excel(t),{}), parquet=lambda t: (parquet(t),{}), lazy=lambda t: (parquet(t),dict(lazy=True)),
    valid=lambda _: (days(),dict(valid=days(8))), same_file=lambda t: (csv(t),dict(valid=csv(t))), most=lambda t: (csv(t),dict(max_items=16)))

@pytest.mark.parametrize('kind', SOURCES)
def test_each_row_by_its_name(tmp_path, bert, kind):
    source,how = SOURCES[kind](tmp_path)
    def load(**kw): return load_data('text', source, checkpoint=bert, **{**how, **kw}).sft.rows
    rows = load()
    assert rows['item'].is_unique
    assert dict(zip(load(seed=7)['item'], load(seed=7).text)).items()>={k:v for k,v in zip(rows['item'], rows.text)}.items() or 'max_items' in how
    first = rows.iloc[3]
    left = load(exclude=[first['item']])
    assert first['item'] not in set(left['item'])
    if 'max_items' not in how: assert len(left)==len(rows)-1
    other = 'neg' if first.label=='pos' else 'pos'
    now = load(corrections=pd.DataFrame([dict(item=first['item'], mark='relabel', label=other, was=first.label)])).set_index('item').label
    was = rows.set_index('item').label
    assert [o for o in was.index if o in now and was[o]!=now[o]]==[first['item']]

def memes(tmp_path):
    for i,c in enumerate('abc'): Image.new('RGB', (24,24), (80*i, 90, 200-60*i)).save(tmp_path/f'{c}.png')
    frame = pd.DataFrame(dict(image=[f'{"abc"[i%3]}.png' for i in range(24)], text=days().text, label=days().label))
    frame.to_csv(tmp_path/'memes.csv', index=False)
    return tmp_path/'memes.csv'

def captions(tmp_path, **kw):
    toy = make_toy('image_text', tmp_path/'toy')
    return load_data('image_text', memes(tmp_path), checkpoint=toy['checkpoint'], size=64, augment=False, num_workers=0, **kw)

def test_one_picture_in_several_rows(tmp_path):
    rows = captions(tmp_path).sft.rows
    assert rows['item'].tolist()[:2]==['a.png (line 2)','b.png (line 3)'] and rows['item'].is_unique
    assert len(captions(tmp_path, exclude=['a.png (line 2)']).sft.rows)==23
    assert len(captions(tmp_path, exclude=['a.png']).sft.rows)==len(captions(tmp_path, exclude='./a.png').sft.rows)==16
    marks = Marks(tmp_path/'marks.jsonl')
    marks.mark('a.png (line 2)', 'relabel', 'pos', was='neg')
    now = captions(tmp_path, corrections=tmp_path/'marks.jsonl').sft.rows
    assert (now.label!=rows.label).sum()==1 and now.label[0]=='pos'

def test_an_old_mark_of_several_rows_is_refused_with_their_names(tmp_path):
    marks = Marks(tmp_path/'marks.jsonl')
    for kind,label in (('relabel','pos'), ('exclude',None)):
        marks.mark('a.png', kind, label, was='neg')
        with pytest.raises(BadRows, match=r"is the name of 8 rows, and one of them was marked: mark 'a.png \(line 2\)', 'a.png \(line 5\)'"):
            captions(tmp_path, corrections=marks)
    marks.mark('a.png', 'clear')
    marks.mark('a.png (line 5)', 'exclude')
    assert len(captions(tmp_path, corrections=marks.to_csv(tmp_path/'c.csv')).sft.rows)==23

def test_old_names_that_are_unambiguous(tmp_path, bert):
    frame = named([f'review {c}{i}' for i in range(8) for c in 'abc'])
    assert len(load_data('text', frame, checkpoint=bert, exclude=['row a0']).sft.rows)==23
    parts = DatasetDict(train=Dataset.from_pandas(days()), test=Dataset.from_pandas(days(6)))
    assert len(load_data('text', parts, checkpoint=bert, exclude=['row 20']).sft.rows)==29
    with pytest.raises(DataError, match="exclude names 'row 3', which is the name of 2 rows: 'train row 3', 'test row 3'. Name one of them."):
        load_data('text', parts, checkpoint=bert, exclude=['row 3'])
    with pytest.raises(DataError, match="the corrections names 'row 3', which is the name of 2 rows"):
        load_data('text', parts, checkpoint=bert, corrections=pd.DataFrame([dict(item='row 3', mark='exclude')]))

def test_names_of_validation_data_that_are_those_of_training(tmp_path):
    for top in ('a/held','b'):
        for i,kind in enumerate(('cat','dog')):
            for j in range(3):
                (tmp_path/top/kind).mkdir(parents=True, exist_ok=True)
                Image.new('RGB', (16,16), (60*i+j, 20*len(top), 90)).save(tmp_path/top/kind/f'{j}.png')
    (tmp_path/'b').rename(tmp_path/'held')
    frame = pd.DataFrame(dict(image=[f'a/held/{k}/{j}.png' for k in ('cat','dog') for j in range(3)], label=['cat']*3+['dog']*3))
    (tmp_path/'a'/'rows.csv').write_text(frame.assign(image=frame.image.str[2:]).to_csv(index=False))
    rows = load_data('image', tmp_path/'a/rows.csv', valid=tmp_path/'held', **NET).sft.rows
    assert rows['item'].tolist()[:2]==['held/cat/0.png','held/cat/1.png'] and rows['item'].is_unique
    assert rows['item'][6]==f'held/cat/0.png ({tmp_path}/held/cat/0.png)'
    assert len(load_data('image', tmp_path/'a/rows.csv', valid=tmp_path/'held', exclude=[rows['item'][6]], **NET).sft.rows)==11

@pytest.mark.parametrize('kind', ['words','levels','parts','csv','valid'])
def test_what_the_audit_suggests_works(tmp_path, bert, kind):
    source,how = SOURCES[kind](tmp_path)
    if isinstance(source, pd.DataFrame):
        source = pd.concat([source, source.iloc[:3].set_axis([('copy',i) if kind=='levels' else f'copy {i}' for i in range(3)])])
    def load(**kw): return load_data('text', source, checkpoint=bert, **how, **kw)
    found = audit(load())
    assert set(found.findings.kind) & {'leak','duplicates'} or kind=='csv'
    again = audit(load(exclude=found.exclude('leak','duplicates')))
    assert not (again.duplicates.kind=='exact').any()
    assert not found.exclude('leak') or not set(found.exclude('leak')) & set(again.rows['item'])

def test_evaluations_have_unique_names(tmp_path, bert):
    learn = sft_learner(load_data('text', named([f'{c} review' for c in 'abcdefghijklmnopqrstuvwx']), checkpoint=bert))
    frame = pd.concat([days(), days()])
    for ev in (evaluate(learn), evaluate(learn, on=frame)): assert ev.rows['item'].is_unique
    table = pd.DataFrame(dict(item=['a','a','b'], target=['x','y','x'], prediction=['x','x','x']))
    assert evaluate_table(table).rows['item'].tolist()==['a (row 0)','a (row 1)','b']

def test_corrections_move_no_row_to_the_other_side(bert):
    "The split is drawn by the labels as they were, also where rows are left out, and a class that corrections made has a row to train on"
    def load(**kw): return load_data('text', days(), checkpoint=bert, **kw).sft.rows.set_index('item')
    before = load()
    held,train = (before[before.split==o] for o in ('valid', 'train'))
    other = next(o for o in sorted(set(before.label)) if o!=held.label.iloc[0])
    marks = [dict(item=held.index[0], mark='relabel', label=other, was=held.label.iloc[0]),
             dict(item=train.index[0], mark='exclude'), *(dict(item=i, mark='relabel', label='new') for i in held.index[-2:])]
    after = load(corrections=pd.DataFrame(marks))
    assert sorted(set(before.index)-set(after.index))==[train.index[0]]
    moved = [i for i in after.index if after.split[i]!=before.split[i]]
    assert len(moved)==1 and moved[0] in held.index[-2:] and after.split[moved[0]]=='train' and after.label[held.index[0]]==other

def test_marks_that_change_nothing_are_counted_apart(bert, capsys):
    frame = days()
    same,other = frame.label[0],next(o for o in frame.label if o!=frame.label[0])
    marks = pd.DataFrame([dict(item='row 0', mark='relabel', label=same), dict(item='row 2', mark='relabel', label=other if frame.label[2]!=other else same)])
    load_data('text', frame.reset_index(drop=True), checkpoint=bert, corrections=marks)
    assert 'Corrections: 1 label, 0 rows left out, 1 label as it is' in capsys.readouterr().err

def test_validation_rows_that_are_copies_of_training_rows_are_said(tmp_path, bert, capsys):
    frame = pd.concat([days(), days(6).assign(label=days(6).label)], ignore_index=True)
    def said(task, source, **kw):
        capsys.readouterr()
        rows = load_data(task, source, **kw).sft.rows
        out = capsys.readouterr()
        return rows,[l for l in (out.out+out.err).splitlines() if 'of a training row' in l]
    rows,lines = said('text', frame, checkpoint=bert)
    held = rows[rows.split=='valid']
    n = held.text.isin(set(rows.text[rows.split=='train'])).sum()
    ways = "group='text' (--group text) keeps them on one side of the split, exclude=leave_out('leak') (--exclude leak) trains without them"
    assert n and lines==[f"{n} of {len(held)} validation rows have the text of a training row, so that scores are too good: {ways}"]
    assert said('text', frame, checkpoint=bert, group='text')[1]==[]
    for i in range(12):
        (tmp_path/'p'/'ab'[i%2]).mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (24,24), (20*i, 90, 200-10*i)).save(tmp_path/'p'/'ab'[i%2]/f'{i}.png')
    assert said('image', tmp_path/'p', valid=.5)[1]==[]
    for i in range(12): (tmp_path/'p'/'ab'[i%2]/f'copy{i}.png').write_bytes((tmp_path/'p'/'ab'[i%2]/f'{i}.png').read_bytes())
    assert 'validation rows have the image of a training row' in said('image', tmp_path/'p', valid=.5)[1][0]

def test_a_model_remembers_the_names_of_its_columns(tmp_path, bert):
    learn = sft_learner(load_data('text', days().rename(columns=dict(text='message', label='team')), checkpoint=bert, input='message', target='team'), seed=1)
    model = load_predictor(save_predictor(learn, tmp_path/'m', metrics={}))
    table = days(6).rename(columns=dict(text='message', label='team')).assign(text='other')
    table.to_csv(tmp_path/'later.csv', index=False)
    ev = evaluate(model, tmp_path/'later.csv')
    assert ev.rows.text.tolist()==table.message.tolist()
    found,other = model.predict(tmp_path/'later.csv').probability,model.predict(['other']).probability[0]
    assert found.tolist()==pytest.approx(model.predict(table.message.tolist()).probability.tolist(), abs=1e-5) and found[0]!=other
    assert len(evaluate(model, days(6)))==6
    with pytest.raises(DataError, match="has no column 'message' for the text. Columns: body, team"): evaluate(model, table.drop(columns='text').rename(columns=dict(message='body')))
