"Folders as people have them: which folders are classes, which are splits, and what is asked instead of guessed"
import json, subprocess, sys
import pandas as pd, pytest
from PIL import Image
from sft_nb.core.basics import DataError
from sft_nb.data.load import load_data
from sft_nb.data.problems import BadRows
from sft_nb.data.rows import read_rows
from sft_nb.data.task import get_task
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.training.learner import sft_learner

NET = dict(checkpoint='timm:test_resnet', pretrained=False, size=64, augment=False, num_workers=0)
CATS = ['cat/1','cat/2','cat/3','dog/1','dog/2','dog/3']

def fill(top, *files, kind='image'):
    for i,o in enumerate(files):
        f = top/o if '.' in o.rsplit('/', 1)[-1] else top/f"{o}.{'png' if kind=='image' else 'txt'}"
        f.parent.mkdir(parents=True, exist_ok=True)
        if f.suffix=='.png': Image.new('RGB', (16,16), (7*i%255,90,20)).save(f)
        else: f.write_text(f'note {i} of the day')
    return top

def within(folder, files=CATS): return [f'{folder}/{o}' for o in files]

def read(top, kind='image'): return read_rows(top, kind)

@pytest.mark.parametrize('kind', ['image','text'])
@pytest.mark.parametrize('beside', [[], ['samples/cat/9','samples/dog/9'], ['README.md','.cache/x/1','docs/a.pdf'], ['9']])
def test_splits_with_other_company(tmp_path, kind, beside, capsys):
    top = fill(tmp_path/'pets', *within('train'), *within('val'), *beside, kind=kind)
    rows = read(top, kind)
    assert (set(rows.label), rows.split.value_counts().to_dict())==({'cat','dog'}, dict(train=6, valid=6))
    said = capsys.readouterr().err
    assert ('beside the splits and not read: samples' in said)==(beside[:1]==['samples/cat/9']) and ('outside of the class folders' in said)==any('9' in o for o in beside)

def test_train_alone_beside_samples(tmp_path):
    sft = load_data('image', fill(tmp_path, *within('Training'), 'samples/cat/1', 'samples/dog/1'), **NET).sft
    assert (sft.vocab, len(sft.rows), set(sft.rows.split))==(['cat','dog'], 6, {'train','valid'})

@pytest.mark.parametrize('files,says', [
    (['a/x/1','a/y/1','b/x/1','b/y/1'], r'can be read in two ways: its folders a, b are the classes, or the folders x, y, which are in each of them, are'),
    (['train/1','train/2','valid/1'], 'train is a split and holds pictures in no class folder. Expected .*/train/CLASS/FILE'),
    (['train/steam/1','train/diesel/1','bus/1'], 'train is a split with the classes diesel, steam, or it is a class beside bus'),
    (within('data/train')+within('data/test')+['more/1'], 'data holds the folders test, train, which are splits'),
    (within('data/train')+within('data/test'), 'data holds the folders test, train, which are splits.*Pass .*/data'),
    (['cat/train/1','cat/test/1','dog/train/1','dog/test/1'], 'cat holds the folders test, train'),
    (within('images'), 'All pictures of .* are in its folder images, which holds cat, dog. Pass .*/images')])
def test_what_is_asked(tmp_path, files, says):
    with pytest.raises(DataError, match=says): load_data('image', fill(tmp_path, *files), **NET)

@pytest.mark.parametrize('files,classes', [(['train/1','train/2','bus/1','bus/2'], {'train','bus'}), (['cat/images/1','dog/images/1'], {'cat','dog'}),
                                           (['cat/day/1','cat/2','dog/day/1','dog/night/1'], {'cat','dog'})])
def test_what_is_a_class(tmp_path, files, classes, capsys):
    assert set(read(fill(tmp_path, *files)).label)==classes
    assert ('train is read as a class' in capsys.readouterr().err)==('train' in classes)

def test_empty_class_folders_are_said(tmp_path, capsys):
    (fill(tmp_path/'a', *CATS)/'bird').mkdir()
    assert set(read(tmp_path/'a').label)=={'cat','dog'}
    (fill(tmp_path/'b', *within('train'), *within('test'))/'test/bird').mkdir()
    (tmp_path/'b/valid').mkdir()
    read(tmp_path/'b')
    said = capsys.readouterr().err.splitlines()
    assert [o.split(': ')[-1] for o in said]==['bird', 'test/bird, valid']

def test_a_class_that_train_lacks(tmp_path):
    with pytest.raises(BadRows, match="label 'emu' is in test, but train lacks it"): load_data('image', fill(tmp_path, *within('train'), *within('test'), 'test/emu/1'), **NET)

def test_two_unicode_forms_are_one_class(tmp_path, capsys):
    sft = load_data('image', fill(tmp_path, 'Cafe\u0301/1', 'Caf\xe9/2', 'bar/1', 'bar/2'), **NET).sft
    assert (sft.vocab, len(sft.rows))==(['Caf\xe9','bar'], 4)
    assert "'Cafe\\u0301' as 'Caf\xe9'" in capsys.readouterr().err

def test_without_labels_all_files_are_rows(tmp_path):
    assert len(read_rows(fill(tmp_path, *within('train'), 'samples/1', '2'), 'image', labelled=False))==8

@pytest.fixture(scope='module')
def pets(tmp_path_factory):
    "A model of cats and dogs"
    top = fill(tmp_path_factory.mktemp('pets'), *CATS)
    save_predictor(sft_learner(load_data('image', top, **NET)), top.parent/'m', metrics={})
    return load_predictor(top.parent/'m', device='cpu')

def test_evaluation_takes_the_test_side(pets, tmp_path, capsys):
    top = fill(tmp_path/'a', *within('train'), *within('val', CATS[:4]), *within('test', CATS[:5]))
    assert len(evaluate(pets, top))==5
    assert f'Evaluating the 5 test rows of {top}, which has 5 test, 4 valid, 6 train rows' in capsys.readouterr().err
    assert [len(evaluate(pets, top, split=o)) for o in ('valid','train','all')]==[4,6,15]
    assert len(evaluate(pets, fill(tmp_path/'b', *within('train'), *within('dev', CATS[:4]))))==4
    with pytest.raises(DataError, match="all 6 rows are of split 'train'.*split='train'"): evaluate(pets, fill(tmp_path/'c', *within('train')))
    with pytest.raises(DataError, match="split='test': .* has no rows of this split. It has 6 train"): evaluate(pets, tmp_path/'c', split='test')
    assert len(evaluate(pets, fill(tmp_path/'d', *within('test'))))==6

def test_evaluation_of_tables_with_a_split(pets, tmp_path):
    paths = [str(f) for f in sorted(fill(tmp_path/'a', *CATS).rglob('*.png'))]
    frame = pd.DataFrame(dict(image=paths, label=['cat']*3+['dog']*3, split=['train','Test','train','test','val','train']))
    frame.to_csv(tmp_path/'a.csv', index=False)
    frame.to_parquet(tmp_path/'a.parquet')
    for source in (frame, tmp_path/'a.csv', tmp_path/'a.parquet', frame.to_dict('records')): assert list(evaluate(pets, source).rows.target)==['cat','dog']
    odd = frame.assign(split=['train','test','holdout','test',None,'train'])
    with pytest.raises(BadRows) as judging: evaluate(pets, odd)
    with pytest.raises(BadRows) as loading: load_data('image', odd, **NET)
    assert list(judging.value.problems.problem)==["unknown split 'holdout'. Valid: train, valid, test", 'empty split']
    assert set(judging.value.problems.problem)<=set(loading.value.problems.problem)
    assert len(evaluate(pets, odd, split='all'))==6
    with pytest.raises(DataError, match="split='tests'. Did you mean 'test'"): evaluate(pets, odd, split='tests')

def test_validation_data_that_have_splits(tmp_path, capsys):
    held = fill(tmp_path/'held', *within('train'), *within('val', ['cat/1','dog/1']))
    sft = load_data('image', fill(tmp_path/'pets', *CATS), valid=held, **NET).sft
    assert sft.rows.split.value_counts().to_dict()==dict(train=6, valid=2)
    assert 'Validating on the 2 valid rows' in capsys.readouterr().err
    assert get_task('image').classes

def test_the_command_line_takes_a_split(pets, tmp_path):
    top = fill(tmp_path, *within('train'), *within('test', CATS[:4]))
    def n(*more):
        r = subprocess.run([sys.executable, '-m', 'sft_nb', 'evaluate', str(pets.folder), str(top), '--device', 'cpu', *more], capture_output=True, text=True)
        return json.loads(r.stdout)['n']
    assert (n(), n('--split', 'all'))==(4,10)
