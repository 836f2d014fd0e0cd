"Each mistake ends with the next command: what it is, that the command knows it, and that it works where the mistake is mended"
import re, shlex, shutil, subprocess, sys
import pytest
from sft_nb.cli import main
from sft_nb.tasks.toys import make_toy
from test_cli import fails, run

fresh = '--checkpoint timm:test_resnet --from-scratch --option size=64 --epochs 1 --no-augment --device cpu'

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with data, a saved model of each of two tasks, a damaged one, and all that is wrong"
    tmp = tmp_path_factory.mktemp('place')
    make_toy('image', tmp/'pets')
    words = make_toy('text', tmp/'words')
    files = {'t.csv':'text,label\na,x\nb,y\nc,x\nd,y\n', 'mood.csv':'text,mood\na,x\nb,y\nc,x\nd,y\n', 'odd.csv':'id,words,mood\n1,a,x\n2,b,y\n', 'empty.csv':'',
             'tickets.csv':'message,team\na,x\nb,y\nc,x\nd,y\n',
             'pairs.csv':'frage;antwort;score\n'+''.join(f'was {i};dies {i};0,{i}\n' for i in range(10, 40)),
             'one.csv':'text,label\na,x\nb,x\n',
             'bad.csv':'text,label\n'+'a good one,x\n'*6+'another,y\n'*6+',y\n', 'note.pdf':'%PDF-1.4', 'broken.png':'nope'}
    for name,text in files.items(): (tmp/name).write_text(text)
    (tmp/'old.csv').write_bytes('text,label\ncafé,x\nb,y\nc,x\nd,y\n'.encode('cp1252'))
    for name in ('empty','full'): (tmp/name).mkdir()
    (tmp/'full'/'x').write_text('1')
    (tmp/'bert').symlink_to(words['checkpoint'])
    with pytest.MonkeyPatch.context() as m:
        m.chdir(tmp)
        code,_,err = run(*shlex.split(f'finetune image pets --out model {fresh}'))
        assert code==0, err
        shutil.copytree('model', 'spoilt')
        (tmp/'spoilt'/'config.json').write_text('{}')
    return tmp

@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place

NEXT = {
    '': 'sft_nb demo',
    '--nonsense': 'sft_nb --help',
    'fintune image pets --out m': 'sft_nb finetune image pets --out m',
    'finetune': 'sft_nb finetune --help',
    'finetune image': 'sft_nb finetune --help',
    'finetune image pets': 'sft_nb finetune image pets --out pets-model',
    'finetune image pets --epochs 3': 'sft_nb finetune image pets --epochs 3 --out pets-model',
    'finetune imgae pets --out m': 'sft_nb finetune image pets --out m',
    'finetune zebra pets --out m': 'sft_nb tasks',
    'finetune image nowhere --out m': 'ls .',
    'finetune text tickets.csv --out m': 'sft_nb finetune text tickets.csv --out m --input message --target team',
    'check text pairs.csv': 'sft_nb check text pairs.csv --input frage,antwort --target score',
    'check text odd.csv': 'sft_nb check text odd.csv --input words --target mood',
    'check text tickets.csv --input mesage': 'sft_nb check text tickets.csv --input message',
    'finetune image deep/nowhere --out m': 'ls .',
    'finetune image pet/ --out m': 'sft_nb finetune image pets --out m',
    'finetune image pet --out m': 'sft_nb finetune image pets --out m',
    'finetune image pets --out model': 'sft_nb finetune image pets --out model-2',
    'finetune image pets --out=full': 'sft_nb finetune image pets --out full-2',
    'finetune image pets --out .': 'sft_nb finetune image pets --out model-2',
    'finetune image pets --out note.pdf/x': 'sft_nb finetune image pets --out x',
    'finetune image pets --out m --epoch 3x': 'sft_nb finetune image pets --out m --epochs 3',
    'finetune image pets --out m --valid 1.5': 'sft_nb finetune image pets --out m --valid 0.2',
    'finetune image pets --out m --color red': 'sft_nb finetune --help',
    'finetune image pets --out m --checkpont x': 'sft_nb finetune image pets --out m --checkpoint x',
    'finetune image pets --out m --bad drop': 'sft_nb finetune image pets --out m --bad skip',
    'finetune image pets --out m --checkpoint timm:resnet1': 'sft_nb finetune image pets --out m --checkpoint timm:resnet18',
    'finetune image pets --out m --checkpoint nonsense': 'sft_nb checkpoints image',
    'finetune image pets --out m --checkpoint ./empty': 'sft_nb checkpoints image',
    'finetune image pets --out m --checkpoint pip:all-minilm-l6-v2': 'sft_nb checkpoints image',
    f'finetune image pets --out m --option sise=64 {fresh}': f'sft_nb finetune image pets --out m --option size=64 {fresh}',
    'finetune image pets --out m --option size': 'sft_nb finetune image pets --out m',
    f'finetune image pets --out m --freeze nogroup {fresh}': f'sft_nb finetune image pets --out m --freeze body {fresh}',
    f'finetune image pets --out m --head nohead {fresh}': f'sft_nb finetune image pets --out m --head linear {fresh}',
    'finetune image pets --out m --device abacus --checkpoint timm:test_resnet --from-scratch':
        'sft_nb finetune image pets --out m --device cpu --checkpoint timm:test_resnet --from-scratch',
    f'finetune image pets --out m --budget soon {fresh}': f'sft_nb finetune image pets --out m --budget 5m {fresh}',
    'finetune image t.csv --out m': 'sft_nb check text t.csv',
    'finetune image empty --out m': 'sft_nb check image empty',
    'finetune image note.pdf --out m': 'sft_nb finetune --help',
    'finetune text mood.csv --out m': 'sft_nb finetune text mood.csv --out m --target mood',
    'finetune text t.csv --out m --input txt': 'sft_nb finetune text t.csv --out m --input text',
    'finetune text t.csv --out m --target lable': 'sft_nb finetune text t.csv --out m --target label',
    'finetune text odd.csv --out m': 'sft_nb finetune text odd.csv --out m --input words --target mood',
    'finetune text one.csv --out m': 'sft_nb check text one.csv',
    'finetune text bad.csv --out m --checkpoint bert': 'sft_nb finetune text bad.csv --out m --checkpoint bert --bad skip',
    'finetune text t.csv --out m --sheet 2': 'sft_nb finetune text t.csv --out m',
    'check text old.csv': 'sft_nb check text old.csv --encoding cp1252',
    'finetune text old.csv --out m --valid .5': 'sft_nb finetune text old.csv --out m --valid .5 --encoding cp1252',
    'check text old.csv --encoding cp1225': 'sft_nb check text old.csv --encoding cp1252',
    'check image pets --encoding cp1252': 'sft_nb check image pets',
    'predict': 'sft_nb predict --help',
    'predict model': 'sft_nb predict --help',
    'predict modle pets': 'sft_nb predict model pets',
    'predict pets pets': 'sft_nb predict model pets',
    'predict spoilt pets': 'sft_nb predict --help',
    'predict model gone.png': 'ls .',
    'predict model pets/round/0.pngg': 'sft_nb predict model pets/round/0.png',
    'predict model broken.png': 'sft_nb predict --help',
    'predict model broken.png pets/round/0.png': 'sft_nb predict model broken.png pets/round/0.png --bad skip',
    'predict model pets --out p.xlsx': 'sft_nb predict model pets --out p.csv',
    'predict model pets --out empty': 'sft_nb predict model pets --out empty/out.csv',
    'predict model empty': 'sft_nb predict --help',
    'evaluate model nowhere': 'ls .',
    'evaluate model t.csv': 'sft_nb check text t.csv',
    'evaluate model empty': 'sft_nb check image empty',
    'evaluate model pets --out m.csv': 'sft_nb evaluate model pets --out m.json',
    'evaluate model pets --out model/p.html': 'sft_nb evaluate model pets --out p.html',
    'evaluate model pets --split test': 'sft_nb evaluate model pets --split all',
    'compare model model pets': 'sft_nb compare --help',
    'compare model modle pets': 'sft_nb compare model model pets',
    'open pets': 'sft_nb open model',
    'check image': 'sft_nb check --help',
    'check image nowhere': 'ls .',
    'check imgae pets': 'sft_nb check image pets',
    'check image pets --option sise=3': 'sft_nb check image pets --option size=3',
    'check text mood.csv': 'sft_nb check text mood.csv --target mood',
    'export model': 'sft_nb export model --out model.onnx',
    'export model --out m.pt': 'sft_nb export model --out m.onnx',
    'export model --out m.onnx --int8': 'sft_nb export model --out m.onnx',
    'chat model': 'sft_nb demo chat',
    'tasks x': 'sft_nb tasks --help',
    'checkpoints imgae': 'sft_nb checkpoints image',
    'cache --clear zzz': 'sft_nb cache',
    'demo nothing': 'sft_nb tasks',
    'demo image --data nowhere': 'ls .',
    'demo image --out model': 'sft_nb demo image --out model-2',
}

def next_of(line): return re.split(r' (?:Type|See): ', fails(*shlex.split(line)))[-1]

@pytest.mark.parametrize('line', NEXT)
def test_the_next_command(line, here):
    before = sorted(here.iterdir())
    assert next_of(line)==NEXT[line]
    assert sorted(here.iterdir())==before

@pytest.mark.parametrize('command', sorted({o for o in NEXT.values() if o.startswith('sft_nb')}))
def test_the_command_knows_its_words(command, capsys):
    from sft_nb.cli import _parser
    try: assert _parser().parse_args(shlex.split(command)[1:])
    except SystemExit as e: assert e.code==0 and command.endswith('--help')

@pytest.mark.parametrize('line', ['finetune imgae pets --out m1', 'finetune image pets', 'finetune image pets --out full', 'finetune image pets --out m4 --freeze nogroup',
                                  'finetune image pets --out m5 --head nohead'])
def test_a_mended_run_ends_well(line, here):
    code,out,err = run(*shlex.split(next_of(f'{line} {fresh}'))[1:])
    assert code==0 and out.startswith('accuracy'), err

@pytest.mark.parametrize('line', ['predict modle pets', 'predict model pets/round/0.pngg', 'predict model broken.png pets/round/0.png', 'predict model pets --out p.xlsx',
                                  'evaluate model pets --split test', 'evaluate model pets --out m.csv', 'export model', 'check imgae pets', 'check text mood.csv',
                                  'cache --clear zzz', 'tasks x', 'checkpoints imgae', 'finetune zebra pets --out m'])
def test_other_commands_end_well(line, here, home):
    try: code,out,err = run(*shlex.split(next_of(line))[1:])
    except SystemExit as e: code,out = e.code,'help'
    assert code in (0, 1) and out, err

def test_a_long_command_is_not_repeated(here):
    assert next_of('predict modle '+' '.join(f'pets/round/{i}.png' for i in range(100)))=='sft_nb predict --help'

def test_words_may_need_quotes(here):
    (here/'my pets').mkdir()
    (here/'my pets'/'x').write_text('1')
    assert next_of("finetune image pets --out 'my pets'")=="sft_nb finetune image pets --out 'my pets-2'"
    shutil.rmtree(here/'my pets')

def test_every_message_is_one_line(here, capsys):
    assert main(['finetune', 'text', 'bad.csv', '--out', 'm', '--checkpoint', 'bert'])==2 and capsys.readouterr().err.count('\n')==1

@pytest.mark.parametrize('line', ['check text odd.csv', 'finetune text odd.csv --out m', 'check text old.csv', 'check text nowhere.csv', 'finetune image pets/note.xls --out m',
                                  'check text t.csv --group place', 'finetune text t.csv --valid odd.csv --out m'])
def test_a_mistake_in_a_file_or_its_columns_needs_no_torch(here, line):
    script = f"import sys\nfrom sft_nb.cli import main\ncode = main({shlex.split(line)!r})\nassert code==2 and not {{'torch','fastai','transformers'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode==0, done.stderr
    assert 'Type: ' in done.stderr
