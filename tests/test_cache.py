"The cache at the frozen border: exact, never stale, whole or absent"
import errno, json, os, signal, subprocess, sys
import numpy as np, pytest, torch
from sft_nb.training import cache
from sft_nb.core.basics import FitError
from sft_nb.data.task import all_tasks, get_task
from sft_nb.data.load import load_data
from sft_nb.training.learner import layer_table, sft_learner
from sft_nb.training.cache_store import cache_folder, cache_info, clear_cache
from sft_nb.training.cache import activations, first_trainable, frozen_cache, why_not
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.tasks.toys import make_toy

pytestmark = pytest.mark.usefixtures('home', 'one_thread')

@pytest.fixture
def shapes(tmp_path):
    make_toy('image', tmp_path/'shapes')
    return tmp_path/'shapes'

def learner(shapes, arch='test_resnet', size=64, freeze='body', head=None, load=None, **kw):
    load = {**dict(size=size, valid=.25, augment=False, batch_size=4, checkpoint=f'timm:{arch}', pretrained=False), **(load or {})}
    learn = sft_learner(load_data('image', shapes, **load), freeze=freeze, head=head, **kw)
    for cb in [o for o in learn.cbs if type(o).__name__=='ProgressCallback']: learn.remove_cb(cb)
    learn.logger = lambda *_: None
    return learn

def weights(learn): return {k:v.detach().clone() for k,v in learn.model.state_dict().items()}
def apart(a, b): return max((a[k].double()-b[k].double()).abs().max().item() for k in a)

def fitted(cached, make, fit=lambda o: o.fit(2, 1e-3), **kw):
    learn = make()
    if cached:
        with frozen_cache(learn, **kw): fit(learn)
        assert learn.cached_groups
    else: fit(learn)
    return weights(learn), np.array(learn.recorder.values, dtype=float)

EXACT = [('test_resnet',64,'body'), ('test_resnet',64,'layer3'), ('test_resnet',64,1), ('test_efficientnet',64,'blocks.2'),
         ('test_vit',80,'body'), ('test_vit',80,'blocks.3'), ('test_convnext',64,'stages.2'), ('regnetx_002',64,'s4'), ('test_mambaout',64,'body')]

@pytest.mark.parametrize('arch,size,freeze', EXACT, ids=str)
def test_training_is_the_same(shapes, arch, size, freeze):
    make = lambda: learner(shapes, arch, size, freeze)
    (a,av),(b,bv) = fitted(False, make),fitted(True, make)
    assert apart(a, b)<1e-5 and np.allclose(av, bv, atol=1e-5)

@pytest.mark.parametrize('head', [[8], 'flatten:8'], ids=str)
def test_other_heads_are_the_same(shapes, head):
    make = lambda: learner(shapes, head=head)
    assert apart(fitted(False, make)[0], fitted(True, make)[0])<1e-5

def test_one_cycle_and_weight_decay_are_the_same(shapes):
    make,fit = lambda: learner(shapes, freeze='layer4', wd=.1),lambda o: o.fit_one_cycle(3, slice(1e-4,1e-2))
    assert apart(fitted(False, make, fit)[0], fitted(True, make, fit)[0])<1e-5

def test_rule_within_the_body_is_the_same(shapes):
    make = lambda: learner(shapes, freeze=dict(rule=r'layer3.*weight'))
    (a,_),(b,_) = fitted(False, make),fitted(True, make)
    assert apart(a, b)<1e-5

def encoder(folder):
    "A BERT of two layers with a tokenizer, where the toy of a task has one"
    for t in all_tasks().values():
        if t.columns==('text','label') and not t.missing(): return t, make_toy(t, folder)
    pytest.skip('no task on texts')

@pytest.mark.parametrize('border', [0, -1])
def test_texts_are_the_same(tmp_path, border):
    task,toy = encoder(tmp_path/'toy')
    def make():
        learn = sft_learner(load_data(task, toy['source'], checkpoint=toy['checkpoint'], pretrained=toy.get('pretrained', True), **toy['load']))
        for m in learn.model.modules():
            if isinstance(m, torch.nn.Dropout): m.p = 0.
        learn.freeze_to(learn.model.borders()[border])
        learn.logger = lambda *_: None
        return learn
    (a,av),(b,bv) = fitted(False, make),fitted(True, make)
    assert apart(a, b)<1e-5 and np.allclose(av, bv, atol=1e-5)

def test_second_run_computes_nothing(shapes, monkeypatch):
    first = fitted(True, lambda: learner(shapes))[0]
    monkeypatch.setattr(cache, '_fill', lambda *_: pytest.fail('computed again'))
    assert apart(first, fitted(True, lambda: learner(shapes))[0])==0

def key_count(shapes, **kw):
    fitted(True, lambda: learner(shapes, **kw), lambda o: o.fit(1))
    return len(cache_info())

def test_what_changed_is_computed_anew(shapes):
    assert key_count(shapes)==2
    assert key_count(shapes)==2
    assert key_count(shapes, seed=7)==4, 'other weights'
    assert key_count(shapes, size=96)==6, 'another size'
    assert key_count(shapes, load=dict(resize='squish'))==8, 'another way to the size'
    assert key_count(shapes, freeze='layer4')==10, 'another border'
    f = sorted(shapes.rglob('*.png'))[0]
    f.write_bytes(sorted(shapes.rglob('*.png'))[-1].read_bytes())
    assert key_count(shapes)==11, 'another picture under the same name: only its side of the split'
    assert key_count(shapes, load=dict(seed=9))==13, 'another split'

def test_trained_weights_are_a_miss(shapes):
    learn = learner(shapes)
    with frozen_cache(learn): learn.fit(1, 1e-2)
    n = len(cache_info())
    with frozen_cache(learn): learn.fit(1, 1e-2)
    assert len(cache_info())==n, 'only the head has moved'
    learn.unfreeze()
    learn.fit(1, 1e-2)
    learn.freeze()
    with frozen_cache(learn): learn.fit(1, 1e-2)
    assert len(cache_info())==n+2

def test_batch_norm_statistics_are_in_the_key(shapes):
    learn = learner(shapes)
    key = lambda: cache.cache_key(learn, len(learn.model.groups)-1, learn.spec.rows)
    was = key()
    assert was==key()
    learn.model.net.layer4[0].bn1.running_mean.add_(1)
    assert key()!=was

def test_rows_are_those_of_the_live_pass(shapes):
    learn = learner(shapes)
    b,rows = len(learn.model.groups)-1,learn.spec.split('train')
    acts = activations(learn, b, rows)
    learn.model.eval()
    with torch.no_grad():
        live = torch.cat([learn.model.prefix(b, *(x if isinstance(x, (tuple,list)) else [x])) for x in get_task('image').item_loader(learn.spec, rows, 5)])
    assert len(acts)==len(rows) and torch.allclose(acts.batch(range(len(rows))), live, atol=1e-6)
    assert torch.equal(acts.batch([3,0]), acts.batch(range(5))[[3,0]])

@pytest.mark.parametrize('dtype,tol', [('float16',1e-2), ('bfloat16',5e-2)])
def test_half_precision(shapes, dtype, tol):
    full = fitted(True, lambda: learner(shapes))
    mb = cache_info().mb.sum()
    half = fitted(True, lambda: learner(shapes), dtype=dtype)
    assert 0<apart(full[0], half[0])<tol and len(cache_info())==4
    assert cache_info().mb.sum()<=2*mb
    bins = sorted(p.stat().st_size for p in cache_folder().glob('*/h.bin'))
    assert bins[0]*2 in bins

def test_unknown_dtype(shapes):
    learn = learner(shapes)
    with pytest.raises(FitError, match="must be 'float32'"), frozen_cache(learn, dtype='int8'): learn.fit(1)

def test_augmentation_switches_it_off_and_says_so(shapes, capsys):
    learn = learner(shapes, load=dict(augment=True))
    with frozen_cache(learn): learn.fit(1)
    assert 'Cache off: augmentation before the border changes the pictures' in capsys.readouterr().err and not len(cache_info())

def test_views(shapes):
    learn = learner(shapes, load=dict(augment=True))
    with frozen_cache(learn, views=2): learn.fit(3)
    assert len(cache_info())==3 and learn.cached_groups
    train = sorted((d for d in cache_folder().glob('*') if (d/'meta.json').exists()), key=lambda d: json.loads((d/'meta.json').read_text())['n'])
    a,b = [cache.Activations(d).batch(range(3)) for d in train[-2:]]
    assert not torch.equal(a, b)

def test_used_while_on(shapes, tmp_path, capsys):
    import matplotlib
    matplotlib.use('Agg')
    learn = learner(shapes, path=tmp_path)
    x = sorted(shapes.rglob('*.png'))[0]
    want = learn.get_preds()[0]
    with frozen_cache(learn):
        learn.fit(1, 0.)
        assert torch.allclose(learn.get_preds()[0], want, atol=1e-5)
        assert np.allclose(evaluate(learn).probabilities, want, atol=1e-5)
        assert np.isclose(learn.validate()[0], evaluate(learn).rows.loss.mean(), atol=1e-5)
        learn.show_results(max_n=2)
        learn.export('m.pkl')
        save_predictor(learn, tmp_path/'saved')
    probs = load_predictor(tmp_path/'saved').predict_proba([str(x)])
    assert len(probs)==1

class Stop(Exception): pass

def test_stopped_while_writing(shapes, monkeypatch):
    add,n = cache._Writer.add,[]
    def stop(self, h):
        add(self, h)
        raise Stop
    monkeypatch.setattr(cache._Writer, 'add', stop)
    with pytest.raises(Stop): fitted(True, lambda: learner(shapes))
    assert not len(cache_info()) and not [d for d in cache_folder().iterdir() if d.is_dir()], n
    monkeypatch.setattr(cache._Writer, 'add', add)
    assert apart(fitted(True, lambda: learner(shapes))[0], fitted(False, lambda: learner(shapes))[0])<1e-5

def test_full_disk(shapes, monkeypatch, capsys):
    want = fitted(False, lambda: learner(shapes))[0]
    def full(self, h): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(cache._Writer, 'add', full)
    learn = learner(shapes)
    with frozen_cache(learn): learn.fit(2, 1e-3)
    assert 'Cache off: ' in (err := capsys.readouterr().err) and 'No space left' in err
    assert apart(weights(learn), want)==0 and not len(cache_info()) and not [d for d in cache_folder().iterdir() if d.is_dir()]

def test_full_disk_when_the_file_is_flushed(shapes, monkeypatch, capsys):
    def full(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(cache.os, 'fsync', full)
    learn = learner(shapes)
    with frozen_cache(learn): learn.fit(1, 1e-3)
    assert 'No space left' in capsys.readouterr().err and not len(cache_info())

def test_unwritable_folder(shapes, home, capsys):
    (home/'activations').write_text('a file is in the way')
    learn = learner(shapes)
    with frozen_cache(learn): learn.fit(1, 1e-3)
    assert 'Cache off: ' in capsys.readouterr().err

def test_too_large_for_the_budget(shapes, monkeypatch, capsys):
    monkeypatch.setenv('SFT_NB_CACHE_BYTES', '1000')
    learn = learner(shapes)
    with frozen_cache(learn): learn.fit(1, 1e-3)
    assert 'GB limit' in (err := capsys.readouterr().err) and 'SFT_NB_CACHE_BYTES' in err and not len(cache_info())

def test_the_oldest_make_room(shapes, monkeypatch):
    fitted(True, lambda: learner(shapes))
    old,size = set(cache_info().key),sum(f.stat().st_size for f in cache_folder().glob('*/*'))
    for d in cache_folder().glob('*/meta.json'): os.utime(d, (1,1))
    monkeypatch.setenv('SFT_NB_CACHE_BYTES', str(int(size*1.6)))
    fitted(True, lambda: learner(shapes, seed=3))
    assert sum(f.stat().st_size for f in cache_folder().glob('*/*'))<=size*1.6
    assert len(set(cache_info().key)-old)==2

def test_info_and_clear(shapes):
    assert list(cache_info())==['key','task','border','rows','mb','used'] and not len(cache_info())
    fitted(True, lambda: learner(shapes))
    info = cache_info()
    assert set(info.rows)=={12,4} and set(info.task)=={'image'} and set(info.border)=={'head'}
    assert clear_cache(info.key[0][:12])==1 and clear_cache()==1 and not len(cache_info())

def test_table_shows_what_is_cached(shapes):
    learn = learner(shapes, freeze='layer4')
    with frozen_cache(learn): learn.fit(1)
    t = layer_table(learn)
    i = first_trainable(learn.model)
    assert 'MB' in t.cached[i-1] and set(t.cached[:i-1])=={'not run'} and set(t.cached[i:])=={''}

def test_why_not(shapes):
    learn = learner(shapes, freeze=None)
    assert 'no border at or below' in why_not(learn)
    learn.freeze()
    assert why_not(learn) is None
    assert 'has no border' in why_not(learner(shapes, 'test_mambaout', freeze='stages.3'))

RUN = '''
import sys, os, time, torch
torch.set_num_threads(1)
from sft_nb.training import cache
from sft_nb.data.load import load_data
from sft_nb.training.learner import sft_learner
fill = cache._fill
def slow(*args):
    print('filled', flush=True)
    time.sleep(float(sys.argv[2]))
    fill(*args)
add = cache._Writer.add
def hang(self, h):
    add(self, h)
    if sys.argv[3]=='hang':
        print('writing', flush=True)
        time.sleep(60)
cache._fill,cache._Writer.add = slow,hang
learn = sft_learner(load_data('image', sys.argv[1], size=64, valid=.25, augment=False, batch_size=4, checkpoint='timm:test_resnet', pretrained=False))
rows = learn.spec.split('train')
print('ready', flush=True)
cache.activations(learn, 5, rows)
print('done', flush=True)
'''

def start(shapes, wait='0', how='go'): return subprocess.Popen([sys.executable, '-c', RUN, str(shapes), wait, how], stdout=subprocess.PIPE, text=True)

def test_two_processes_compute_once(shapes):
    both = [start(shapes, '3') for _ in range(2)]
    out = [p.communicate(timeout=300)[0] for p in both]
    assert all(p.returncode==0 for p in both) and all('done' in o for o in out)
    assert sum(o.count('filled') for o in out)==1 and len(cache_info())==1

def test_killed_while_writing(shapes):
    p = start(shapes, how='hang')
    while (line := p.stdout.readline()) and 'writing' not in line: pass
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    p.stdout.close()
    assert not len(cache_info())
    q = start(shapes)
    assert 'done' in q.communicate(timeout=300)[0] and len(cache_info())==1
    assert not [d for d in cache_folder().iterdir() if d.is_dir() and not (d/'meta.json').exists()], 'what the killed one had written is cleared away'
