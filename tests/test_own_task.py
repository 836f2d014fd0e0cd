"A task that stands outside the package: the lesson's one keeps the contract, which is run over it unedited"
import json, os, re, subprocess, sys
from pathlib import Path
import pytest
from sft_nb.core.basics import TaskError
from sft_nb.data.task import all_tasks

root = Path(__file__).resolve().parents[1]

@pytest.fixture
def module(tmp_path):
    "The cell of the lesson that is the whole task, as a module"
    cells = json.loads((root/'nbs'/'tutorials'/'10_own_task.ipynb').read_text(encoding='utf8'))['cells']
    written = [''.join(c['source']) for c in cells if ''.join(c['source']).startswith('%%writefile')]
    assert len(written)==1
    first,_,text = written[0].partition('\n')
    name = re.search(r'(\w+)\.py$', first)[1]
    (tmp_path/f'{name}.py').write_text(text, encoding='utf8')
    return name,tmp_path

def run(module, folder, *args):
    path = os.pathsep.join([str(folder), str(root), os.environ.get('PYTHONPATH', '')])
    return subprocess.run([sys.executable, *map(str, args)], cwd=root, capture_output=True, text=True, env={**os.environ, 'SFT_NB_TASKS':module, 'PYTHONPATH':path})

def test_the_contract_holds_for_a_task_of_ones_own(module):
    r = run(*module, '-m', 'pytest', '-q', '-rs', '-p', 'no:cacheprovider', '-k', 'series', 'tests/test_tasks.py')
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-1000:]
    collected = subprocess.run([sys.executable, '-m', 'pytest', '-q', '--collect-only', '-k', 'translation', 'tests/test_tasks.py'], cwd=root, capture_output=True, text=True)
    n = int(re.search(r'test_tasks.py: (\d+)', collected.stdout)[1])
    assert n>20 and 'SKIPPED' not in r.stdout and r.stdout.splitlines()[0].count('.')==n

def test_the_command_line_knows_it(module, tmp_path):
    r = run(*module, '-m', 'sft_nb', 'demo', 'series', '--out', tmp_path/'out', '--epochs', 2)
    assert r.returncode==0 and r.stdout.startswith('accuracy '), r.stderr
    assert 'series' in run(*module, '-m', 'sft_nb', 'tasks').stdout
    alone = run('', tmp_path, '-m', 'sft_nb', 'predict', tmp_path/'out', '1 2 3')
    assert alone.returncode==2 and "There is no task 'series'" in alone.stderr

def test_a_module_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv('SFT_NB_TASKS', 'no_such_task_module')
    with pytest.raises(TaskError, match="SFT_NB_TASKS names the module 'no_such_task_module', which cannot be imported"): all_tasks()
