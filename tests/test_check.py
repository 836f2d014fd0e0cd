"`check_data` and `sft_nb check`: every task, what is wrong, what to type next; nothing is trained"
import shlex, subprocess, sys
import pandas as pd, pytest
from sft_nb.core.basics import DataError
from sft_nb.data.load import load_data
from sft_nb.data.problems import BadRows
from sft_nb.diagnosis.check import check_data, leave_out
from sft_nb.data.task import get_task
from sft_nb.tasks.toys import make_toy

def command(*args): return subprocess.run([sys.executable, '-W', 'ignore', '-m', 'sft_nb', *map(str, args)], capture_output=True, text=True)

@pytest.fixture
def notes(tmp_path):
    texts = [f'a fine warm day {i}' for i in range(6)]+[f'a dull wet day {i}' for i in range(6)]
    frame = pd.DataFrame(dict(text=texts, label=['calm']*6+['storm']*6, place=['hill','sea']*6))
    frame.to_csv(tmp_path/'notes.csv', index=False)
    return frame

@pytest.mark.parametrize('name', ['image','text','translation','speech','image_text'])
def test_every_task(name, tmp_path, home):
    "The rows that can be used, and those that cannot, are those of `load_data`"
    toy = make_toy(name, tmp_path/'toy')
    own = dict(checkpoint=toy['checkpoint'], pretrained=toy.get('pretrained', True), **toy.get('load', {}))
    check,dls = check_data(name, toy['source'], **own),load_data(name, toy['source'], **own)
    assert check.ok and list(check.spec.rows['item'])==list(dls.sft.rows['item']) and list(check.spec.rows.split)==list(dls.sft.rows.split)
    facts = dict(check.facts.values)
    assert facts['rows'].startswith(f'{len(dls.sft.rows):,},') and all(o in facts['columns'] for o in (*dls.sft.task.input_columns, dls.sft.task.target.column))
    named = toy['bad']()
    named = [named] if isinstance(named, str) else named
    with pytest.raises(BadRows) as e: load_data(name, toy['source'], **own)
    check = check_data(name, toy['source'], **own)
    assert not check.ok and all(o in repr(check) for o in named) and set(check.problems.problem)>=set(e.value.problems.problem)

def test_what_is_found_is_named_with_its_rows(notes, tmp_path):
    odd = pd.concat([notes, pd.DataFrame(dict(text=['a fine warm day 0', ''], label=['storm', 'calm'], place=['sea', 'sea']))])
    odd.to_csv(tmp_path/'odd.csv', index=False)
    check = check_data('text', tmp_path/'odd.csv')
    assert list(check.problems.row)==['odd.csv line 15'] and list(check.problems.problem)==['empty text']
    assert 'conflict' in set(check.findings.kind) and 'row 2 ' in repr(check) and 'row 14 ' in repr(check)
    assert check.facts.set_index('what').value['classes']=='2: calm 6, storm 7'

def test_command_that_is_named_works(notes, tmp_path):
    "What it says to type next is taken by `finetune`"
    check = check_data('text', str(tmp_path/'notes.csv'), valid=.25, max_length=32)
    words = shlex.split(check.command)
    assert words[:3]==['sft_nb','finetune','text'] and words[words.index('--option')+1]=='max_length=32'
    done = command(*words[1:words.index('--out')], '--out', tmp_path/'model', '--epochs', 0, '--head-epochs', 1)
    assert done.returncode==0, done.stderr
    assert (tmp_path/'model'/'sft.json').is_file()

def test_exit_status(notes, tmp_path):
    good = command('check', 'text', tmp_path/'notes.csv')
    assert good.returncode==0 and 'Next: sft_nb finetune text' in good.stdout
    notes.assign(text=['', *notes.text[1:]]).to_csv(tmp_path/'bad.csv', index=False)
    bad = command('check', 'text', tmp_path/'bad.csv', '--out', tmp_path/'problems.csv')
    assert bad.returncode==1 and 'bad.csv line 2: empty text' in bad.stdout and '--bad skip' in bad.stdout
    assert list(pd.read_csv(tmp_path/'problems.csv').problem)==['empty text']
    lost = command('check', 'text', tmp_path/'nowhere.csv')
    assert lost.returncode==2 and lost.stdout=='' and len(lost.stderr.splitlines())==1
    column = command('check', 'text', tmp_path/'notes.csv', '--input', 'txt')
    assert column.returncode==2 and "no column 'txt'" in column.stderr and len(column.stderr.splitlines())==1

def test_frames_and_too_few_rows(notes):
    assert check_data('text', notes).command.startswith("load_data('text'")
    lone = check_data('text', notes[:6])
    assert lone.spec is None and 'one class only' in lone.problems.problem.iloc[-1] and 'Next: fix' in repr(lone)
    with pytest.raises(DataError, match='Leave it out'): check_data('text', notes, bad='skip')

def repeated(n=60):
    "Texts of which some recur, with their label"
    texts = [f'a {("fine warm","dull wet")[i%2]} day {i}' for i in range(n)]
    return pd.DataFrame(dict(text=texts+texts[:n//4]+texts[:n//6], label=[('calm','storm')[i%2] for i in [*range(n), *range(n//4), *range(n//6)]]))

def test_what_is_left_out_does_not_leak_again(tmp_path, capsys):
    "In a shell and in Python: the rows that are held out stay, and no copy of them is trained on"
    frame = repeated()
    frame.to_csv(tmp_path/'notes.csv', index=False)
    check = check_data('text', tmp_path/'notes.csv')
    assert 'leak' in set(check.findings.kind) and '--exclude leak' in check.command and "leave_out('leak')" in check_data('text', frame).command
    before = check.spec.rows
    capsys.readouterr()
    rows = load_data('text', tmp_path/'notes.csv', exclude=leave_out('leak')).sft.rows
    said = capsys.readouterr().err
    held = lambda r: list(r['item'][r.split=='valid'])
    gone = set(before['item'])-set(rows['item'])
    assert gone and held(rows)==held(before) and not set(rows.text[rows.split=='valid']) & set(rows.text[rows.split=='train'])
    n = (before.split=='train').sum()
    assert f'exclude leaves out {len(gone)} of {n} train rows, 0 of {len(held(before))} valid rows' in said and 'of a training row' not in said
    named = load_data('text', tmp_path/'notes.csv', exclude=check.audit.exclude('leak')).sft.rows
    assert list(named['item'])==list(rows['item']) and list(named.split)==list(rows.split), 'by name as by kind'
    again = check_data('text', tmp_path/'notes.csv', exclude=leave_out('leak'))
    assert 'leak' not in set(again.findings.kind) and again.command==check.command
    for bad in ((), ('leaks',)):
        with pytest.raises(DataError, match="Did you mean 'leak'|needs a kind"): load_data('text', frame, exclude=leave_out(*bad))

def test_copies_alone_are_not_left_out(tmp_path):
    "A class of which all training rows are copies of held-out ones"
    frame = pd.DataFrame(dict(text=['one']*10+[f'day {i}' for i in range(20)], label=['same']*10+['other']*20))
    with pytest.raises(DataError, match="leaves no row of class 'same' to train on. Split by group="): load_data('text', frame, exclude=leave_out('leak'))
    assert 'leak' not in set(check_data('text', frame.drop(index=range(10)), valid=.3).findings.kind)

def test_the_shell_leaves_out_too(tmp_path):
    repeated().to_csv(tmp_path/'notes.csv', index=False)
    out = command('check', 'text', tmp_path/'notes.csv')
    following = shlex.split(out.stdout.strip().splitlines()[-1].removeprefix('Next: sft_nb '))
    assert out.returncode==0 and '--exclude leak' in out.stdout and '--exclude' in following
    again = command('check', 'text', tmp_path/'notes.csv', '--exclude', 'leak')
    assert again.returncode==0 and 'two sides of the split' not in again.stdout and 'exclude leaves out' in again.stdout
    wrong = command('check', 'text', tmp_path/'notes.csv', '--exclude', 'leek')
    assert wrong.returncode==2 and wrong.stderr.strip().endswith('--exclude leak') and 'group' in command('check', '--help').stdout
