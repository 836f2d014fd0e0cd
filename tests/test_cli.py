"The command line, as a user types it: every command on a toy task, every kind of mistake"
import csv, io, json, os, re, signal, subprocess, sys
import pytest
from sft_nb.data.task import get_task
from sft_nb.cli import main
from sft_nb.tasks.toys import make_toy

train = '--from-scratch --no-augment --epochs 1 --seed 3 --device cpu'.split()

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    "The toy data of the image task and the arguments that go with it"
    made = make_toy('image', tmp_path_factory.mktemp('toy'))
    options = [o for k,v in made['load'].items() if k not in ('valid', 'augment') for o in ('--option', f'{k}={v}')]
    return made['source'], ['--checkpoint', made['checkpoint'], '--valid', str(made['load'].get('valid', .25)), *options, *train]

@pytest.fixture(scope='module')
def saved(toy, tmp_path_factory):
    "A finished run: its folder and what the command printed last"
    out = tmp_path_factory.mktemp('run')/'model'
    code,text,err = run('finetune', 'image', toy[0], '--out', out, *toy[1])
    assert code==0, err
    return out, text, err

def run(*args):
    "Exit code, standard output and standard error of the command in this process"
    out,err,was = io.StringIO(),io.StringIO(),(sys.stdout, sys.stderr)
    sys.stdout,sys.stderr = out,err
    try: code = main([str(o) for o in args])
    except SystemExit as e: code = e.code
    finally: sys.stdout,sys.stderr = was
    return code, out.getvalue(), err.getvalue()

def fails(*args):
    "Standard error of a command that a mistake of the user stops"
    code,out,err = run(*args)
    assert (code, out)==(2, ''), err
    lines = [o for o in err.splitlines() if not (o.startswith('Skipped ') and ' files in ' in o)]
    assert len(lines)==1 and lines[0].startswith('sft_nb'), err
    assert 'Traceback' not in err
    return lines[0]

def test_finetune_prints_one_line(saved):
    out,text,err = saved
    assert text.count('\n')==1
    assert text.startswith('accuracy ') and '12 trained, 4 held out' in text and str(out) in text
    assert 'train_loss' in err and '\r' not in err

def test_finetune_writes_the_folder(saved):
    out = saved[0]
    assert {'metrics.json', 'history.csv', 'report.html', 'sft.json', 'config.json', 'model.safetensors'} <= {o.name for o in out.iterdir()}
    assert [o for o in out.parent.iterdir() if o!=out] == []
    metrics = json.loads((out/'metrics.json').read_text())
    assert {'accuracy', 'precision', 'recall', 'f1', 'n_train', 'n_valid', 'seconds_head', 'seconds_finetune'} <= set(metrics)
    assert all(isinstance(o, (int, float)) for o in metrics.values())
    assert (metrics['n_train'], metrics['n_valid'])==(12, 4)
    history = list(csv.DictReader((out/'history.csv').open()))
    assert [o['phase'] for o in history][0]=='head' and {'epoch', 'train_loss', 'valid_loss', 'accuracy', 'seconds'} <= set(history[0])

def test_relative_paths(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(toy[0].parent)
    code,_,err = run('finetune', 'image', f'{toy[0].name}/', '--out', tmp_path/'o', *toy[1])
    assert code==0, err

def test_report_stands_alone(saved):
    page = (saved[0]/'report.html').read_text()
    assert all(o in page for o in ('<svg', 'Confusion', 'data:image/jpeg;base64', 'Settings', 'timm:test_resnet'))
    assert not any(o in page for o in ('http:', 'https:', '<script', '<link'))

def test_nothing_saved_is_a_pickle(saved):
    assert not [o.name for o in saved[0].rglob('*') if o.suffix in ('.pkl', '.pth', '.pt', '.bin', '.ckpt')]

def test_out_must_be_free(saved, toy):
    before = sorted(o.stat().st_mtime_ns for o in saved[0].iterdir())
    assert 'exists already' in fails('finetune', 'image', toy[0], '--out', saved[0], *toy[1])
    assert sorted(o.stat().st_mtime_ns for o in saved[0].iterdir())==before

@pytest.mark.parametrize('what,phases', [('body', ['head']), ('none', ['finetune']), ('layers=2', ['head', 'fit']), ('rule=bias', ['head', 'fit'])])
def test_freeze(what, phases, toy, tmp_path):
    code,_,err = run('finetune', 'image', toy[0], '--out', tmp_path/'o', '--freeze', what, '--decay', '.9', *toy[1])
    assert code==0, err
    assert [o['phase'] for o in csv.DictReader((tmp_path/'o'/'history.csv').open())]==phases

def test_predict_items_folder_and_table(saved, toy, tmp_path):
    out,source = saved[0],toy[0]
    pictures = sorted(source.rglob('*.png'))[:3]
    code,text,_ = run('predict', out, *pictures)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert code==0 and list(rows[0])==['item', 'prediction', 'probability'] and len(rows)==3
    (tmp_path/'items.csv').write_text('image\n'+'\n'.join(map(str, pictures))+'\n')
    (tmp_path/'items.txt').write_text('\n'.join(map(str, pictures))+'\n')
    for given in ('items.csv', 'items.txt'):
        again = list(csv.DictReader(io.StringIO(run('predict', out, tmp_path/given)[1])))
        assert [o['prediction'] for o in again]==[o['prediction'] for o in rows]
    assert len(run('predict', out, source)[1].splitlines())==17

def test_predict_writes_json_lines(saved, toy, tmp_path):
    picture = min(toy[0].rglob('*.png'))
    assert run('predict', saved[0], picture, '--out', tmp_path/'p.jsonl')[0]==0
    row = json.loads((tmp_path/'p.jsonl').read_text())
    assert set(row)=={'item', 'prediction', 'probability'} and 0<row['probability']<=1

def test_evaluate(saved, toy, tmp_path):
    code,text,_ = run('evaluate', saved[0], toy[0])
    metrics = json.loads(text)
    assert code==0 and metrics['n']==16 and all(isinstance(o, (int, float)) for o in metrics.values())
    assert run('evaluate', saved[0], toy[0], '--out', tmp_path/'m.json')[0]==0
    assert json.loads((tmp_path/'m.json').read_text())==metrics

def test_tasks_and_checkpoints():
    code,text,_ = run('tasks')
    assert code==0 and 'image' in text and 'pip:efficientnet-lite0' in text
    code,text,_ = run('checkpoints')
    assert code==0 and text.splitlines()[0].split()==['ref', 'task', 'params', 'size_mb', 'license', 'here']
    packaged,published,sources,after = run('checkpoints', 'chat')[1].rstrip().split('\n\n')
    assert [o.split()[0] for o in packaged.splitlines()]==['ref', 'pip:smollm2-135m-instruct']
    assert published.startswith('Published, not tried here:\n') and len(published.splitlines())==7 and sources.count('https://')>=5 and after.startswith('Next: sft_nb finetune chat')
    assert "There is no task 'chatt'. Did you mean 'chat'" in fails('checkpoints', 'chatt')

def test_each_task_has_published_checkpoints():
    from sft_nb.data.task import all_tasks
    for task in all_tasks():
        said = run('checkpoints', task)[1]
        head,*lines = said.split('Published, not tried here:\n')[1].split('\n\n')[0].splitlines()
        assert [len(re.split(r' {2,}', o.strip())) for o in lines]==[len(head.split())]*5, 'each model has its parameters, size, license, speed and purpose'
        assert 'speed: by the parameters alone' in said

BARE = """
import contextlib, io, json, sys
from importlib.machinery import PathFinder
from sft_nb.data.task import all_tasks
gone = {o for t in all_tasks().values() for o in t.modules}
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, *args): return None if name in gone else super().find_spec(name, *args)
sys.meta_path[:] = [Finder if o is PathFinder else o for o in sys.meta_path]
from sft_nb.cli import main, _parser
def run(*words):
    out,err = io.StringIO(),io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: code = main([*words])
        except SystemExit as e: code = e.code
    return ' '.join(words),code,out.getvalue()+err.getvalue()
helps = [(o, '--help') for o in _parser().commands]
lists = [('tasks',), ('cache',), ('checkpoints',), *(('checkpoints', t) for t in all_tasks())]
print(json.dumps([sorted(gone), [run(*o) for o in [(), ('--help',), *helps, *lists]], run('check', 'audio', 'x')]))
"""

def test_lists_and_help_need_no_library_of_a_task(tmp_path):
    "Where nothing that reads data is installed, commands that read none work; those that do name the extra"
    done = subprocess.run([sys.executable, '-c', BARE], capture_output=True, text=True, env={**os.environ, 'SFT_NB_HOME':str(tmp_path)})
    assert not done.returncode, done.stderr
    gone,said,read = json.loads(done.stdout.splitlines()[-1])
    assert {'soundfile','jiwer','sacrebleu','transformers'}<=set(gone) and len(said)>20
    assert [(words, text) for words,code,text in said if code!=(0 if words else 2) or words!='tasks' and 'pip install' in text]==[]
    assert read[1]==2 and "pip install 'sft_nb[speech]'" in read[2]

toy_net = ['--checkpoint', 'timm:test_resnet', '--from-scratch']
mistakes = {
    'no command': ([], 'a command is missing'),
    'unknown command': (['fintune'], 'invalid choice'),
    'unknown task': (['finetune', 'imgae', '{src}', '--out', '{out}'], "no task 'imgae'"),
    'no out': (['finetune', 'image', '{src}'], '--out'),
    'no data': (['finetune', 'image', '{src}/gone', '--out', '{out}'], 'is missing'),
    'no table': (['finetune', 'image', '{src}/round/0.png', '--out', '{out}'], 'Valid endings'),
    'epochs': (['finetune', 'image', '{src}', '--out', '{out}', '--epochs', 'three'], '--epochs'),
    'share': (['finetune', 'image', '{src}', '--out', '{out}', '--valid', '1.5'], '--valid'),
    'checkpoint': (['finetune', 'image', '{src}', '--out', '{out}', '--checkpoint', 'timm:resnet1'], 'resnet1'),
    'option': (['finetune', 'image', '{src}', '--out', '{out}', '--option', 'sise=64', '--from-scratch'], 'sise'),
    'freeze': (['finetune', 'image', '{src}', '--out', '{out}', '--freeze', 'no_such_group', *toy_net], 'no_such_group'),
    'device': (['finetune', 'image', '{src}', '--out', '{out}', '--device', 'abacus', *toy_net], 'abacus'),
    'lr and decay': (['finetune', 'image', '{src}', '--out', '{out}', '--decay', '1.5', *toy_net], 'decay'),
    'no model': (['predict', '{src}', 'a.png'], 'sft.json'),
    'model gone': (['predict', '{src}/gone', 'a.png'], 'gone'),
    'ending': (['predict', '{saved}', 'a.png', '--out', 'p.xlsx'], '.xlsx'),
    'picture gone': (['predict', '{saved}', '{src}/gone.png'], 'gone.png'),
    'evaluate without data': (['evaluate', '{saved}', '{src}/gone'], 'gone'),
}

@pytest.mark.parametrize('name', mistakes)
def test_mistakes_are_one_line(name, toy, saved, tmp_path):
    args,words = mistakes[name]
    said = fails(*(o.format(src=toy[0], saved=saved[0], out=tmp_path/'out') for o in args))
    assert words in said and re.search(r'Type: (sft_nb|ls) [^\n]+$', said)
    assert list(tmp_path.iterdir())==[]

def test_bad_rows_are_all_named(tmp_path):
    made = make_toy('image', tmp_path/'toy')
    named = made['bad']()
    args = ['finetune', 'image', made['source'], '--out', tmp_path/'out', '--checkpoint', made['checkpoint'], *train, '--option', 'size=64']
    message = fails(*args)
    assert named in message and 'bad' in message
    assert not (tmp_path/'out').exists()
    code,_,err = run(*args, '--bad', 'skip')
    assert code==0, err

def test_text_of_the_data_is_escaped(tmp_path):
    made = make_toy('image', tmp_path/'toy')
    (made['source']/'round').rename(made['source']/'<img src=x onerror=alert(1)>')
    code,_,err = run('finetune', 'image', made['source'], '--out', tmp_path/'out', '--checkpoint', made['checkpoint'], '--option', 'size=64', *train)
    assert code==0, err
    page = (tmp_path/'out'/'report.html').read_text()
    assert '<img src=x' not in page and '&lt;img src=x onerror=alert(1)&gt;' in page

def process(*args, **kw):
    return subprocess.Popen([sys.executable, '-m', 'sft_nb', *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **kw)

def test_ctrl_c_leaves_nothing(toy, tmp_path):
    p = process('finetune', 'image', toy[0], '--out', tmp_path/'out', *[o if o!='1' else '5000' for o in toy[1]])
    for line in p.stderr:
        if 'train_loss' in line: break
    p.send_signal(signal.SIGINT)
    _,err = p.communicate(timeout=60)
    assert p.returncode==130 and 'interrupted' in err and 'Traceback' not in err
    assert list(tmp_path.iterdir())==[]

def test_a_closed_pipe_is_no_error(saved, toy):
    p = process('predict', saved[0], toy[0])
    p.stdout.close()
    assert p.stderr.read()=='' and p.wait(60)==0

def test_unexpected_errors_keep_their_traceback(monkeypatch):
    from sft_nb.checkpoints import references
    def broken(task=None): raise ZeroDivisionError('a fault of the program')
    monkeypatch.setattr(references, 'list_checkpoints', broken)
    with pytest.raises(ZeroDivisionError): run('checkpoints')

@pytest.mark.slow
def test_demo(tmp_path):
    p = process('demo', '--out', tmp_path/'out')
    text,err = p.communicate(timeout=900)
    assert p.returncode==0, err
    assert float(text.split()[1]) >= .95

def test_resume_goes_on(toy, saved, tmp_path, monkeypatch):
    from fastai.optimizer import Optimizer
    step,seen = Optimizer.step,[]
    def killed(self, *args, **kwargs):
        seen.append(self)
        if len(seen)==2: signal.raise_signal(signal.SIGTERM)
        return step(self, *args, **kwargs)
    words = ['finetune', 'image', toy[0], '--out', tmp_path/'model', '--resume', tmp_path/'kept', *toy[1]]
    monkeypatch.setattr(Optimizer, 'step', killed)
    code,out,err = run(*words)
    assert (code, out, (tmp_path/'model').exists())==(143, '', False) and 'the same call goes on from there' in err
    assert 'fine_tune(epochs=) was 1, is 2' in fails(*words, '--epochs', 2)
    code,out,err = run(*words)
    assert code==0 and 'Resume: going on at' in err and not (tmp_path/'kept').exists()
    assert (tmp_path/'model'/'model.safetensors').read_bytes()==(saved[0]/'model.safetensors').read_bytes()
