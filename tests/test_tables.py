"Tables as people really have them are read as they were written, or refused by line: every dialect, encoding and way of quoting, and what Excel and Windows make of them"
import csv, io, random, sys, unicodedata
import pandas as pd, pytest
from PIL import Image
from sft_nb.core.basics import DataError, MissingExtra
from sft_nb.data.task import get_task
from sft_nb.data.problems import BadRows
from sft_nb.data.table_files import Own, _read_table
from sft_nb.data.load import load_data
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.evaluation.tables import evaluate_table
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.training.learner import sft_learner
from sft_nb.tasks.toys import make_toy

NET = dict(checkpoint='timm:test_resnet', pretrained=False, augment=False)
LABELS = ['neg','pos']*12

def texts(n=24): return [f'a {"fine" if i%2 else "dull"} day {i}' for i in range(n)]

def read(path, text, encoding='utf-8', **kw):
    "(rows of cells, problems, names)"
    path.write_bytes(text.encode(encoding))
    return frame_of(_read_table(path, **kw))

def frame_of(frame):
    own = frame.drop(columns=[Own.PLACE, Own.PROBLEM])
    return own.to_numpy().tolist(),[o for o in frame[Own.PROBLEM] if o],list(own.columns)

def rows(n=24, sep='\t'): return [f'{t}{sep}{l}' for t,l in zip(texts(n), LABELS)]

# stray quotes, in every place: no row is lost, whatever the separator
STRAY = dict(one=('"Fine', None), pair=('"Fine', 'dull "sad"'), held=('"Fine', 'a screen of 24"'), inner=('5" and 6"', '"so" he said'), whole=('"Hello."', 'he said "no"'))

@pytest.mark.parametrize('ending,sep', [('tsv','\t'), ('csv',','), ('csv',';'), ('csv','|')])
@pytest.mark.parametrize('kind', STRAY)
def test_no_row_is_swallowed(tmp_path, kind, ending, sep, capsys):
    lines,(a,b) = rows(sep=sep),STRAY[kind]
    lines[2] = f'{a} day{sep}neg'
    if b: lines[9] = f'{b}{sep}pos'
    got,problems,_ = read(tmp_path/f'a.{ending}', '\n'.join([f'text{sep}label', *lines])+'\n')
    assert len(got)==24
    assert all('quote is opened here and never closed' in o for o in problems)
    assert bool(problems)==(ending=='csv' and a=='"Fine')
    assert (got[2],got[9][1])==([f'{a} day','neg'],'pos')
    if not problems and kind!='one': assert got[9][0]==(b or texts()[9])
    if kind!='one' or problems: assert 'quotes are read as characters' in capsys.readouterr().err

def test_two_stray_quotes_that_hold_rows_together_without_evidence_are_refused(tmp_path):
    with pytest.raises(DataError, match=r'a.tsv line 3: a quote opens here and closes in line 5, and each of these lines would be a row by itself\. Double'):
        read(tmp_path/'a.tsv', 'source\ttarget\nGo.\tVa.\n"Run\tCours\nSit\tAssis\nHe has 5"\tIl en a\n')

def test_lines_of_a_cell_are_kept(tmp_path, capsys):
    got,_,_ = read(tmp_path/'a.csv', 'text,label\r\n"Dear John, thanks\r\n\r\nyours, Ann",pos\r\n'+'fine day,pos\r\ndull day,neg\r\n'*6)
    assert got[0]==['Dear John, thanks\r\n\r\nyours, Ann','pos'] and len(got)==13
    assert capsys.readouterr().err=="a.csv: 1 of 13 rows span several lines, by their quotes (from line 2)\n"

@pytest.mark.parametrize('encoding', ['utf-8','utf-8-sig','utf-16','utf-16-le','utf-16-be','utf-32'])
@pytest.mark.parametrize('end', ['\n','\r\n','\r'])
def test_encodings_and_line_ends(tmp_path, encoding, end, capsys):
    got,problems,names = read(tmp_path/'a.csv', end.join(['text;label', *rows(sep=';')])+end, encoding)
    assert (len(got),problems,names,got[0])==(24, [], ['text','label'], ['a dull day 0','neg'])
    assert ('UTF-16' in capsys.readouterr().err)==encoding.startswith('utf-16')

@pytest.mark.parametrize('text,says', [
    ('text,label,\na,x,\nb,y,more\n', "line 3: 'more' stands in column 3, which has no name"), (',,\na,b,c\n', 'names no column'),
    ('text,label,text\na,b,c\n', "column 'text' occurs twice")])
def test_names_that_are_none(tmp_path, text, says):
    with pytest.raises(DataError, match=says): read(tmp_path/'a.csv', text)

def test_what_excel_leaves_behind(tmp_path):
    assert read(tmp_path/'a.csv', 'sep=;\r\ntext;"my; label";;;\r\na;x;;;\r\n"b; c";y\r\n;;;;\r\n')==([['a','x'],['b; c','y']], [], ['text','my; label'])
    assert read(tmp_path/'a.csv', '"text", "label"\n"a, b", "x"\n"c",y\n')==([['a, b','x'],['c','y']], [], ['text','label'])
    assert read(tmp_path/'a.csv', 'text;label;"note, long"\na, b;x;y\n')[2]==['text','label','note, long']

# ---------- Excel itself
def book(path, *sheets):
    openpyxl = pytest.importorskip('openpyxl')
    made = openpyxl.Workbook()
    made.remove(made.active)
    for title,lines in sheets:
        sheet = made.create_sheet(title)
        for line in lines: sheet.append(line)
    made.save(path)
    return path

def test_a_workbook(tmp_path, capsys):
    path = book(tmp_path/'a.xlsx', ('Notes',[['x']]), ('Data',[['text','label','stars',None], *([t,l,i,None] for i,(t,l) in enumerate(zip(texts(), LABELS))), [], ['late','pos',7.5,None]]))
    toy = make_toy('text', tmp_path/'toy')
    with pytest.raises(DataError, match="no sheet 'data'. Its sheets: 'Notes', 'Data'"): load_data('text', path, checkpoint=toy['checkpoint'], sheet='data')
    for sheet in ('Data', 2):
        spec = load_data('text', path, checkpoint=toy['checkpoint'], sheet=sheet).sft
        assert len(spec.rows)==25 and spec.rows['row'].iloc[-1]=='a.xlsx row 27' and spec.rows.stars.iloc[-1]==7.5
    capsys.readouterr()
    with pytest.raises(DataError, match="a.xlsx has no column 'text'"): load_data('text', path, checkpoint=toy['checkpoint'])
    assert "a.xlsx: sheet 'Notes' of 2; sheet= selects another" in capsys.readouterr().err
    with pytest.raises(DataError, match='has no sheets'): load_data('text', pd.DataFrame(dict(text=['a'], label=['b'])), checkpoint=toy['checkpoint'], sheet=1)
    learn = sft_learner(spec and load_data('text', path, checkpoint=toy['checkpoint'], sheet='Data'))
    assert len(evaluate(learn, on=path, sheet='Data'))==25

def test_without_the_library_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openpyxl', None)
    (tmp_path/'a.xlsx').write_bytes(b'PK')
    with pytest.raises(MissingExtra, match=r"pip install 'sft_nb\[excel\]'"): _read_table(tmp_path/'a.xlsx')

def test_formulas_and_errors_of_a_workbook(tmp_path):
    got,problems,_ = frame_of(_read_table(book(tmp_path/'a.xlsx', ('S',[['text','label'], ['=UPPER("a")','x'], ['#N/A','y'], ['b','y']]))))
    assert len(got)==3 and problems[0].startswith('cell A2 is a formula whose value was not stored') and problems[1:]==['cell A3 is the error #N/A']

@pytest.mark.parametrize('name', ['a.xls','a.ods'])
def test_other_spreadsheets(tmp_path, name):
    (tmp_path/name).write_bytes(b'x')
    with pytest.raises(DataError, match=r'Save the spreadsheet as \.xlsx or \.csv'): load_data('text', tmp_path/name)

# ---------- names of files
def pets(folder, names, form=None):
    for i,name in enumerate(names):
        path = folder/(unicodedata.normalize(form, name) if form else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes('RGB', (16,16), bytes((j*(i+3)*7+i)%256 for j in range(768))).save(path)

def table(folder, names, column='image'):
    pd.DataFrame({column:names, 'label':['cat' if i%2 else 'dog' for i in range(len(names))]}).to_csv(folder/'labels.csv', index=False)
    return folder/'labels.csv'

IDS = [f'p{i:02}' for i in range(12)]

def test_folder_and_ending(tmp_path, monkeypatch):
    pets(tmp_path/'train', [f'{o}.png' for o in IDS])
    path = table(tmp_path, IDS, 'id')
    with pytest.raises(BadRows) as e: load_data('image', path, input='id', **NET)
    assert f"labels.csv line 2: is missing: {tmp_path}/p00 (folder='train', ending='.png' finds it)" in str(e.value)
    for kw in (dict(folder='train', ending='.png'), dict(folder=tmp_path/'train', ending='png')):
        spec = load_data('image', path, input='id', **kw, **NET).sft
        assert spec.rows.image[0]==str(tmp_path/'train/p00.png') and spec.rows['item'][0]=='p00' and spec.options['ending']==kw['ending']
    with pytest.raises(DataError, match="folder='trian': there is no folder"): load_data('image', path, input='id', folder='trian', **NET)
    with pytest.raises(DataError, match="ending='.png' is for a table"): load_data('image', tmp_path, ending='.png', **NET)

def test_a_saved_model_takes_the_same(tmp_path):
    pets(tmp_path/'train', [f'{o}.png' for o in IDS])
    path = table(tmp_path, IDS, 'id')
    learn = sft_learner(load_data('image', path, input='id', folder='train', ending='.png', **NET))
    model = load_predictor(save_predictor(learn, tmp_path/'m', metrics={}), device='cpu')
    assert len(evaluate(model, on=path, input='id', folder='train'))==12
    assert model.predict(path, input='id', folder='train')['item'].tolist()==IDS
    assert model.predict_proba(path, input='id', folder='train', ending='.png').shape==(12,3)
    assert model.predict(str(tmp_path/'train'/'p00.png')).shape==(1,3)

def test_paths_of_windows_and_of_a_mac(tmp_path, capsys):
    pets(tmp_path, [f'été/é{i}.png' for i in range(12)], 'NFD')
    for names,says in (([f'été/é{i}.png' for i in range(12)], '12 paths were found under a name in another Unicode form'), ([f'été\\é{i}.png' for i in range(12)], 'with backslashes')):
        spec = load_data('image', table(tmp_path, names), **NET).sft
        assert len(spec.rows)==12 and says in capsys.readouterr().err
        assert len(load_data('image', tmp_path/'labels.csv', exclude=[spec.rows['item'][0]], **NET).sft.rows)==11

# ---------- evaluation says what loading says
@pytest.mark.parametrize('broken', ['text,label\na,pos,x\nb,neg\n', 'text,label\n"open,pos\nb,neg\n', 'body,label\na,pos\n', 'text,label,\na,pos,x\n', 'text,label\na\n'])
def test_loading_and_evaluation_say_the_same(tmp_path, broken):
    toy = make_toy('text', tmp_path/'toy')
    good = pd.DataFrame(dict(text=texts(), label=LABELS))
    learn = sft_learner(load_data('text', good, checkpoint=toy['checkpoint']))
    (tmp_path/'a.csv').write_text(broken+''.join(f'{t},{l}\n' for t,l in zip(texts(), LABELS)) if not broken.startswith('body') else broken)
    said = []
    for f in (lambda **kw: load_data('text', tmp_path/'a.csv', checkpoint=toy['checkpoint'], **kw), lambda **kw: evaluate(learn, on=tmp_path/'a.csv', **kw)):
        with pytest.raises(DataError) as e: f()
        said.append(str(e.value))
    assert said[0]==said[1]

def test_bad_rows_can_be_skipped_in_evaluation(tmp_path):
    toy = make_toy('text', tmp_path/'toy')
    learn = sft_learner(load_data('text', pd.DataFrame(dict(text=texts(), label=LABELS)), checkpoint=toy['checkpoint']))
    (tmp_path/'a.csv').write_text('text,label\na day,pos,more\n"open,pos\nanother day,neg\n')
    assert len(evaluate(learn, on=tmp_path/'a.csv', bad='skip'))==1

# ---------- what is written is read
ALPHABET = ['a','b','é','😀',' ',',',';','\t','|','"',"'",'\n','\r\n','x,y','""','\\','NA','007','=1','#','\u00a0','  ']

def cell(rng, plain=False):
    "A cell that is not blank"
    body = ''.join(rng.choice([o for o in ALPHABET if not (plain and o in ('\n','\r\n'))]) for _ in range(rng.randrange(8)))
    return rng.choice('kmz')+body

def sheet(rng, plain=False):
    "(names, rows): two columns or more, one of which may repeat its values"
    names = rng.sample(['text','label','note, long','a;b','_row','item','größe','x "y"',"it's"], rng.randint(2, 5))
    values = [cell(rng, plain) for _ in range(2)]
    return names,[[cell(rng, plain) if j or rng.random()<.3 else rng.choice(values) for j in range(len(names))] for _ in range(rng.randint(1, 30))]

def write(rng, path, names, body):
    "A table by one of the writers; returns the path"
    how,sep,end = rng.choice(['pandas','all','minimal','excel']),rng.choice(',;\t|'),rng.choice(['\n','\r\n'])
    if how=='excel': return book(path.with_suffix('.xlsx'), ('S',[names,*body]))
    path = path.with_suffix('.tsv' if sep=='\t' else '.csv')
    out = io.StringIO(newline='')
    quoting = csv.QUOTE_ALL if how=='all' else rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC])
    if how=='pandas': pd.DataFrame(body, columns=names).to_csv(out, index=False, sep=sep, lineterminator=end, quoting=quoting)
    else: csv.writer(out, delimiter=sep, lineterminator=end, quoting=quoting).writerows([names,*body])
    path.write_bytes(out.getvalue().encode(rng.choice(['utf-8','utf-8-sig','utf-16','utf-32'])))
    return path

def kept(value, excel): return value.replace('\r\n', '\n') if excel else value

def round_trip(seed, folder):
    "(whether it was refused, by line)"
    rng = random.Random(seed)
    names,body = sheet(rng)
    path = write(rng, folder/f't{seed}', names, body)
    try: got,problems,columns = frame_of(_read_table(path))
    except DataError as e:
        assert 'line' in str(e) and path.name in str(e), (seed, e)
        return True
    excel = path.suffix=='.xlsx'
    assert columns==names, (seed, path, columns)
    if problems: return all('quote is opened here' in o for o in problems)
    assert [[kept(v, excel) for v in o] for o in body]==[[kept(v, excel) for v in o] for o in got], (seed, path)
    return False

def damaged(seed, folder):
    "A quote more or less: each line that has none of it is read as it was, or the file is refused by line"
    rng = random.Random(seed)
    names = ['text','label']
    body = [[cell(rng, True).translate({ord('"'):None, **dict.fromkeys(map(ord, '\t,;|'), ' ')}).strip(), rng.choice(['pos','neg'])] for _ in range(rng.randint(8, 40))]
    sep = rng.choice(',;\t|')
    lines,hurt = [sep.join(o) for o in body],sorted(rng.sample(range(len(body)), rng.randint(1, 4)))
    for i in hurt:
        at = rng.choice([0, len(body[i][0]), rng.randint(0, len(lines[i]))])
        lines[i] = lines[i][:at]+'"'+lines[i][at:]
    path = folder/f'd{seed}.{"tsv" if sep==chr(9) else "csv"}'
    path.write_text('\n'.join([sep.join(names), *lines])+'\n')
    try: frame = _read_table(path)
    except DataError as e:
        assert 'line' in str(e), (seed, e)
        return True
    got = dict(zip(frame[Own.PLACE], zip(frame.text, frame.label)))
    for i,o in enumerate(body):
        if i not in hurt: assert got.get(f'{path.name} line {i+2}')==tuple(o), (seed, i, lines, got)
    assert len(frame)==len(body)
    return False

@pytest.mark.parametrize('f', [round_trip, damaged])
def test_what_is_written_is_read(tmp_path, f):
    assert sum(f(seed, tmp_path) for seed in range(60))<=6

@pytest.mark.slow
@pytest.mark.parametrize('f', [round_trip, damaged])
def test_what_is_written_is_read_many_times(tmp_path, f):
    assert sum(f(seed, tmp_path) for seed in range(60, 1000))<=60

def test_the_command_line_takes_folder_ending_and_sheet(tmp_path, capsys):
    from sft_nb.cli import main
    pets(tmp_path/'train', [f'{o}.png' for o in IDS])
    path = book(tmp_path/'ids.xlsx', ('Notes',[['x']]), ('Data',[['id','label'], *([o, 'cat' if i%2 else 'dog'] for i,o in enumerate(IDS))]))
    files = ['--input', 'id', '--folder', str(tmp_path/'train'), '--sheet', '2']
    how = ['--checkpoint', 'timm:test_resnet', '--from-scratch', '--epochs', '0', '--ending', '.png', '--device', 'cpu']
    assert main(['finetune', 'image', str(path), '--out', str(tmp_path/'m'), *how, *files])==0
    assert main(['evaluate', str(tmp_path/'m'), str(path), '--device', 'cpu', *files])==0
    capsys.readouterr()
    assert main(['predict', str(tmp_path/'m'), str(path), '--device', 'cpu', *files])==0
    assert capsys.readouterr().out.splitlines()[1].startswith('p00,')
    assert main(['evaluate', str(tmp_path/'m'), str(path), '--device', 'cpu', '--sheet', 'Deta'])==2
    assert "no sheet 'Deta'. Its sheets: 'Notes', 'Data'" in capsys.readouterr().err

# ---------- names that we use ourselves
def test_columns_and_classes_with_our_names(tmp_path):
    names = ['item','row','split_','group','tokens','problem_','_item','_row','_problem','source_item','target','prediction','probability','loss','correct','data_target']
    frame = pd.DataFrame({'_text':texts(), '_label':['item' if i%2 else 'all' for i in range(24)], **{o:[f'{o} {i}' for i in range(24)] for o in names}})
    frame.to_csv(tmp_path/'a.csv', index=False)
    toy = make_toy('text', tmp_path/'toy')
    for source in (tmp_path/'a.csv', frame):
        spec = load_data('text', source, input='_text', target='_label', checkpoint=toy['checkpoint']).sft
        assert spec.vocab==['all','item'] and spec.rows.columns.is_unique and spec.rows['item'].is_unique
        kept = {tuple(spec.rows[c]) for c in spec.rows if spec.rows[c].dtype==object or str(spec.rows[c].dtype).startswith('str')}
        assert all(tuple(frame[o]) in kept for o in names)
    model = load_predictor(save_predictor(sft_learner(load_data('text', frame, input='_text', target='_label', checkpoint=toy['checkpoint'])), tmp_path/'m', metrics={}), device='cpu')
    ev = evaluate(model, on=tmp_path/'a.csv', input='_text', target='_label')
    assert ev.rows.columns.is_unique and ev.rows['data_data_target'][0]=='target 0' and ev.rows['data_target'][0]=='data_target 0'
    made = model.predict_proba(texts())
    assert list(made.columns)==['item','all','class_item'] and made['item'].tolist()==texts()
    again = evaluate_table(made.assign(target=frame['_label']))
    assert again.metrics==ev.metrics and (again.rows.loss-ev.rows.loss).abs().max()<1e-4

@pytest.mark.parametrize('name', ['seconds','tokens'])
def test_a_column_called_as_what_is_measured(tmp_path, name):
    task = 'speech' if name=='seconds' else 'text'
    toy = make_toy(task, tmp_path/'toy')
    path = toy['source']
    pd.read_csv(path).assign(**{name:'0:01'}).to_csv(path, index=False)
    rows = load_data(task, path, checkpoint=toy['checkpoint'], **toy.get('load', {})).sft.rows
    assert set(rows[f'source_{name}'])=={'0:01'} and rows[name].max()>0
