"`check_data` and `sft_nb check`: every task, what is wrong, what to type next; nothing is trained"
import shlex, subprocess, sys
import pandas as pd, pytest
from sft_nb.core.basics import DataError
from sft_nb.data.load import load_data
from sft_nb.data.problems import BadRows
from sft_nb.diagnosis.check import check_data
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
