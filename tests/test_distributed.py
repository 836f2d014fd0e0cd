"A run of two processes is the run of one: same curve, every row counted once, one writer, resumed like any other"
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from accelerate.commands.launch import launch_command_parser
from shared import curve, well
from sft_nb.core.basics import process_rank
from sft_nb.data.lazy import ArrowRows, DatasetRows, is_lazy
from sft_nb.data.load import load_data
from sft_nb.data.task import get_task
from sft_nb.tasks.toys import make_toy
from sft_nb.training.learner import sft_learner

pytestmark = pytest.mark.usefixtures('home', 'one_thread')

def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], v) for k,v in b.items())

def as_one(run, task, n=2, **how):
    one,all_ = well(run(task, 'one', 1, **how)),well(run(task, 'two', n, **how))
    assert one['left'][0]['history'][0].keys()==all_['left'][0]['history'][0].keys() and len(curve(one))>1
    assert np.allclose(curve(one), curve(all_), rtol=1e-5, atol=1e-4)
    assert all(same(all_['weights'][0], w) for w in all_['weights'][1:]) and all(np.array_equal(curve(all_), curve(all_, r)) for r in range(1, n))
    return one,all_

RUNS = [('image', dict(way='tune', batch_size=5)), ('image', dict(way='live', batch_size=3)), ('image', dict(way='head', checkpoint='timm:test_resnet')),
        ('text', dict(way='tune', batch_size=5)), ('text', dict(way='live', batch_size=7, accumulate=True)),
        ('text', dict(way='gradual', learner=dict(class_weights=[3., .5], label_smoothing=.1)))]

@pytest.mark.parametrize('task,how', RUNS, ids=str)
def test_two_processes_train_as_one(run, task, how): as_one(run, task, **how)

NORMS = dict(way='norms', checkpoint='timm:test_resnet', batch_size=5)
MORE = [('tokens', 2, dict(way='live', batch_size=3)), ('audio', 2, dict(way='live', batch_size=3, load=dict(augment=False))), ('text', 4, dict(way='live', batch_size=5)),
        ('chat', 4, dict(way='live', batch_size=5)), ('chat', 2, dict(way='live', batch_size=3, adapter='lora')), ('image', 2, NORMS), ('image', 4, NORMS)]

@pytest.mark.parametrize('task,n,how', MORE, ids=str)
def test_more_tasks_and_processes_train_as_one(run, task, n, how):
    "With LoRA, and convolutions that train between norms that keep the statistics of pretraining, too"
    one,all_ = as_one(run, task, n, **how)
    assert max((v.float()-all_['weights'][0][k].float()).abs().max().item() for k,v in one['weights'][0].items())<1e-3
    if how['way']!='norms': return
    assert any('conv' in o for o in all_['left'][0]['trains']) and all((v==0).all() for k,v in all_['weights'][0].items() if k.endswith('running_mean'))

@pytest.mark.slow
@pytest.mark.parametrize('task', ['translation', 'speech', 'image_text'])
@pytest.mark.parametrize('way', ['live', 'head'])
def test_other_tasks_train_as_one(run, task, way):
    "Pictures by a network without batch norm: such a norm that trains sees the rows of its process alone"
    as_one(run, task, way=way, batch_size=3, toy=dict(arch='test_vit') if task=='image_text' else {})

def test_norms_that_train_end_equal_in_all(run):
    "A process may have no picture in a step, so that its norms have counted fewer"
    two = well(run('image_text', 'two', 2, way='live', batch_size=3))
    assert same(*two['weights'])

def test_a_loss_over_tokens_is_the_same_in_any_batches_and_processes(run):
    "Nothing is learnt: the loss of the validation is one number, whichever rows come together"
    found = [well(run('translation', f'{n}-{bs}', n, way='still', batch_size=bs))['left'][0]['history'][0]['valid_loss'] for n,bs in ((1, 1), (1, 3), (1, 32), (2, 2), (2, 3), (2, 32))]
    assert found==pytest.approx([found[0]]*6, rel=1e-5)

def test_every_row_is_counted_once_and_one_process_writes(run, tmp_path):
    one,two = as_one(run, 'text', way='tune', batch_size=3, evaluate=True, save=True)
    (a,),(b,c) = one['left'],two['left']
    assert b['evaluate']==pytest.approx(a['evaluate'], abs=1e-6) and c['evaluate']==b['evaluate'] and b['group'] and not a['group']
    assert b['history'][-1]['accuracy']==pytest.approx(b['evaluate']['accuracy'])
    assert (tmp_path/'two-model-0'/'sft.json').is_file() and not (tmp_path/'two-model-1').exists()
    assert 'valid_loss' in two['said'][0][0] and two['said'][1]==['', '']

def test_the_cache_is_filled_once(run):
    first = well(run('text', 'first', 2, way='head', home='shared'))
    again = well(run('text', 'again', 2, way='head', home='shared'))
    alone = well(run('text', 'alone', 1, way='head', home='other'))
    assert sum(o['fills'] for o in first['left'])==alone['left'][0]['fills']==2 and not any(o['fills'] for o in again['left'])
    assert same(first['weights'][0], again['weights'][0])

@pytest.mark.parametrize('task,way', [('image', 'steps'), pytest.param('text', 'gradual', marks=pytest.mark.slow)])
def test_both_killed_and_resumed(run, tmp_path, task, way):
    how = dict(way=way, dropout=True)
    whole = well(run(task, 'whole', 2, **how))
    for i,step in enumerate((2, 5)):
        assert run(task, f'killed{i}', 2, resume=str(tmp_path/'run'), act={r:('kill', step) for r in (0, 1)}, **how)['codes']==[-9, -9]
    again = well(run(task, 'again', 2, resume=str(tmp_path/'run'), **how))
    assert 'Resume: going on at' in again['said'][0][1] and again['said'][1][1]==''
    assert same(whole['weights'][0], again['weights'][0]) and same(*again['weights']) and np.array_equal(curve(whole), curve(again))
    assert sorted(p.suffix for p in (tmp_path/'run').iterdir() if p.suffix)==['.json']*2+['.safetensors']*2

@pytest.mark.parametrize('dies', [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_killed_stops_the_other(run, tmp_path, dies):
    whole = well(run('text', 'whole', 2, way='steps'))
    broken = run('text', 'broken', 2, way='steps', resume=str(tmp_path/'run'), act={dies:('kill', 6)})
    assert broken['codes'][dies]==-9 and broken['codes'][1-dies]==1 and broken['seconds']<20
    said = broken['said'][1-dies][1]
    assert 'FitError: Another of the 2 processes of this run has ended or does not answer' in said and 'The run is saved in' in said and 'the same call goes on from there' in said
    assert same(whole['weights'][0], well(run('text', 'again', 2, way='steps', resume=str(tmp_path/'run')))['weights'][0])

def test_one_that_stands_still_is_given_up(run, tmp_path):
    broken = run('text', 'broken', 2, way='steps', resume=str(tmp_path/'run'), act={1:('stop', 6)}, timeout=3)
    assert broken['codes']==[1, -9] and 2<broken['seconds']<20 and 'waited up to 3 s' in broken['said'][0][1]

def test_one_that_fails_says_so(run, tmp_path):
    broken = run('text', 'broken', 2, way='steps', act={1:('fail', 3)})
    assert broken['codes']==[1, 1] and 'this process has a fault' in broken['said'][1][1] and 'See what the other one said' in broken['said'][0][1]

def test_a_signal_to_one_stops_both_at_the_same_step(run, tmp_path):
    whole = well(run('text', 'whole', 2, way='steps'))
    stopped = run('text', 'stopped', 2, way='steps', resume=str(tmp_path/'run'), every='1h', act={1:('term', 6)})
    assert stopped['codes']==[143, 143] and 'the same call goes on from there' in stopped['said'][0][1]
    assert same(whole['weights'][0], well(run('text', 'again', 2, way='steps', resume=str(tmp_path/'run'), every='1h'))['weights'][0])

def test_what_cannot_be_shared_is_refused(run, tmp_path):
    small = run('text', 'small', 2, way='steps', batch_size=1)
    assert small['codes']==[1, 1] and 'Batches of 1 cannot be shared among 2 processes. Take batch_size=2 or more' in small['said'][0][1]
    run('text', 'killed', 2, way='steps', resume=str(tmp_path/'run'), act={r:('kill', 3) for r in (0, 1)})
    alone = run('text', 'alone', 1, way='steps', resume=str(tmp_path/'run'))
    assert alone['codes']==[1] and 'processes was 2, is 1' in alone['said'][0][1]

def launch(words, *args, **env):
    return subprocess.run([sys.executable, '-m', *words, *map(str, args)], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1', **env}, timeout=300)

TORCHRUN = 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m', 'sft_nb'
ACCELERATE = 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '-m', 'sft_nb'

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    toy = make_toy('text', tmp_path_factory.mktemp('toy'))
    return [toy['source'], '--checkpoint', toy['checkpoint'], '--valid', '.25', '--epochs', '2', '--device', 'cpu']

@pytest.mark.parametrize('how', [TORCHRUN, pytest.param(ACCELERATE, marks=pytest.mark.slow)], ids=['torchrun', 'accelerate'])
def test_the_command(toy, tmp_path, how):
    r = launch(how, 'finetune', 'text', *toy, '--out', tmp_path/'two', '--resume', tmp_path/'run')
    assert not r.returncode, r.stderr
    assert r.stdout.count('trained')==1 and r.stderr.count('finetune 2/2 ')==1 and not (tmp_path/'run').exists()
    assert {'metrics.json', 'sft.json', 'history.csv', 'report.html'}<={p.name for p in (tmp_path/'two').iterdir()}

@pytest.mark.slow
def test_the_command_under_fsdp(toy, tmp_path):
    known = any('--fsdp_version' in o.option_strings for o in launch_command_parser()._actions)
    second,env = (('--fsdp_version', '2'), {}) if known else ((), dict(FSDP_VERSION='2'))
    r = launch((*ACCELERATE[:1], '--use_fsdp', *second, *ACCELERATE[2:]), 'finetune', 'text', *toy, '--out', tmp_path/'two', **env)
    assert not r.returncode and r.stderr.count('each of 2 processes has a share')==1 and (tmp_path/'two'/'sft.json').is_file(), r.stderr
    r = launch((*ACCELERATE[:1], '--use_fsdp', *ACCELERATE[2:]), 'finetune', 'text', *toy, '--out', tmp_path/'one')
    assert r.returncode and "FSDP_VERSION must be 2, got '1'" in r.stderr and not (tmp_path/'one').exists()

@pytest.mark.slow
def test_accelerate_starts_two_processes(toy, tmp_path):
    "One alone would take batches of one row; the second says so too where it is not stopped within five seconds"
    r = launch(ACCELERATE, 'finetune', 'text', *toy, '--out', tmp_path/'two', '--batch-size', '1')
    assert r.returncode and 'Batches of 1 cannot be shared among 2 processes' in r.stderr and not (tmp_path/'two').exists()

@pytest.mark.slow
def test_the_command_says_a_mistake_once(toy, tmp_path):
    r = launch(TORCHRUN, 'finetune', 'text', *toy, '--out', tmp_path/'two', '--batch-size', '1')
    assert r.returncode and r.stderr.count('sft_nb: Batches of 1 cannot be shared')==1 and not (tmp_path/'two').exists()

def lazy_job(source, checkpoint, out):
    "Which rows of a table in a file a process reads while it trains and validates, and how many at once"
    learn = sft_learner(load_data('text', source() if callable(source) else source, valid=.25, checkpoint=checkpoint, batch_size=4, lazy=True), freeze=None)
    found,reads = [],{k:k.read for k in (ArrowRows, DatasetRows)}
    def noted(read): return lambda rows, column, idxs: (found.append((column, [int(i) for i in idxs])), read(rows, column, idxs))[1]
    for k,f in reads.items(): k.read = noted(f)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    Path(f'{out}-{process_rank()}.json').write_text(json.dumps(dict(found=found, lazy=is_lazy(learn.dls.sft.rows.text), valid=len(learn.dls.valid_ds), left=len(learn.dls.train_ds)%4)))

@pytest.mark.parametrize('kind', ['parquet', 'dataset'])
def test_rows_in_a_file_are_read_once_and_by_one_process(toy, tmp_path, shared, kind):
    table = pd.read_csv(toy[0])
    table.to_parquet(tmp_path/'rows.parquet')
    if kind=='dataset': pytest.importorskip('datasets').Dataset.from_pandas(table).save_to_disk(str(tmp_path/'rows'))
    def source(): return __import__('datasets').load_from_disk(str(tmp_path/'rows')) if kind=='dataset' else tmp_path/'rows.parquet'
    codes,_ = shared.launched(2, tmp_path/'two', lambda: lazy_job(source, toy[2], tmp_path/'two'))
    assert codes==[0, 0], (tmp_path/'two-0.err').read_text()
    left = [json.loads((tmp_path/f'two-{r}.json').read_text()) for r in range(2)]
    rows = [[i for _,idxs in o['found'] for i in idxs] for o in left]
    assert all(o['lazy'] and o['valid']%4!=1 for o in left) and {c for o in left for c,_ in o['found']}=={'text'}
    assert left[0]['left']==0 and len({*rows[0], *rows[1]})==len(rows[0]+rows[1]) and min(map(len, rows))>=.4*len(table)
    assert len(rows[0]+rows[1])>=len(table)-1, 'the row that was read last, before the fit, may still be held'
    assert max(len(idxs) for o in left for _,idxs in o['found'])<=2

NOTEBOOK = """
import sys, torch
from accelerate import notebook_launcher
def train(source, checkpoint, out):
    torch.set_num_threads(1)
    from sft_nb.all import load_data, process_count, process_rank, save_predictor, sft_learner
    learn = sft_learner(load_data('text', source, valid=.25, checkpoint=checkpoint, batch_size=4))
    with learn.no_bar(), learn.no_logging(): learn.fit_head(2)
    if not process_rank(): print('of', process_count())
    save_predictor(learn, out)
torch.set_num_threads(2)
torch.rand(800, 800)@torch.rand(800, 800)
if __name__=='__main__': notebook_launcher(train, sys.argv[1:4], num_processes=2, use_port=sys.argv[4])
"""

def test_a_notebook_launches(toy, tmp_path, shared):
    "The notebook has computed in several threads already; a fork that takes several too would wait for threads that it does not have"
    (tmp_path/'notebook.py').write_text(NOTEBOOK)
    r = subprocess.run([sys.executable, tmp_path/'notebook.py', toy[0], toy[2], tmp_path/'model', str(shared.free_port())], capture_output=True, text=True, timeout=300)
    assert not r.returncode and 'of 2' in r.stdout and (tmp_path/'model'/'sft.json').is_file(), r.stderr

def test_a_single_process_has_no_group():
    words = ("import sys, sft_nb; assert not {'torch','accelerate'}&sys.modules.keys(); import sft_nb.training.learner, torch; "
             "assert 'accelerate' not in sys.modules and not torch.distributed.is_initialized()")
    assert not subprocess.run([sys.executable, '-c', words]).returncode
