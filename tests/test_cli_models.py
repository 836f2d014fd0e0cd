"Two models compared, and the pages of a run opened, from the command line"
import csv, json, shutil, subprocess, sys
from pathlib import Path
import pandas as pd, pytest
from playwright.sync_api import expect, sync_playwright
from sft_nb.deployment.predictor import load_predictor
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.evaluation.tables import load_evaluation
from sft_nb.tasks.toys import make_toy
from test_cli import fails, run
from browser import browsers

rows = [(f'a {w} day number {i}', 'good') for i,w in enumerate(['fine','bright','fine','calm']*5)]+[(f'a {w} day number {i}', 'bad') for i,w in enumerate(['grim','dark','grim','wet']*5)]

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "Data, two models of it and one of other classes; the second keeps its predictions"
    tmp = tmp_path_factory.mktemp('models')
    toy = make_toy('text', tmp/'toy')
    pd.DataFrame(rows, columns=['text','label']).to_csv(tmp/'days.csv', index=False)
    pd.DataFrame([(t, 'sun' if l=='good' else 'rain') for t,l in rows], columns=['text','label']).to_csv(tmp/'other.csv', index=False)
    base = ['--checkpoint', toy['checkpoint'], '--device', 'cpu', '--valid', '.5']
    runs = dict(one=('days.csv', ['--head-epochs', 1, '--epochs', 0, '--lr', '1e-6', '--seed', 1]), two=('days.csv', ['--epochs', 1, '--keep-predictions']),
                weather=('other.csv', ['--head-epochs', 1, '--epochs', 0]))
    for name,(data,more) in runs.items():
        code,_,err = run('finetune', 'text', tmp/data, '--out', tmp/name, *base, *more)
        assert code==0, err
    return tmp

def test_compare_says_what_changed(models, tmp_path):
    code,out,err = run('compare', models/'one', models/'two', models/'days.csv', '--out', tmp_path/'changed.csv')
    assert code==0, err
    one,two = (evaluate(load_predictor(models/o, device='cpu'), on=models/'days.csv') for o in ('one','two'))
    want = two.compare(one).set_index('metric')
    lines = {o.split()[0]:o for o in out.splitlines() if o.split()}
    assert out.startswith(f'two against one, 40 rows of {models}/days.csv\n')
    for k in ('accuracy','f1'): assert f'{want.difference[k]:+.4f}' in lines[k] and f'{want.low[k]:+.4f} to {want.high[k]:+.4f}' in lines[k] and lines[k].endswith(want.verdict[k])
    differ = two.rows.prediction.to_numpy()!=one.rows.prediction.to_numpy()
    assert 0<differ.sum() and f'{differ.sum()} of 40 rows are predicted differently' in out
    written = list(csv.DictReader((tmp_path/'changed.csv').open()))
    assert {o['item'] for o in written}==set(two.rows['item'][differ]) and {'text','target','prediction','other','right'}<=set(written[0])
    assert [o['right'] for o in written]==sorted((o['right'] for o in written), key=['other','this','neither','both'].index)

def test_compare_refuses_other_classes_by_name(models):
    said = fails('compare', models/'one', models/'weather', models/'days.csv')
    assert "only" in said and "knows 'bad', 'good'" in said and "knows 'rain', 'sun'" in said

def test_compare_goes_by_the_names_of_the_classes(models, tmp_path):
    "The same model with its classes in another order, head and all, is no other model"
    from safetensors.torch import load_file, save_file
    from sft_nb.deployment.folder import read_info
    shutil.copytree(models/'two', tmp_path/'turned')
    info = read_info(tmp_path/'turned')
    heads = {n:{k:v.flip(0) if v.ndim and v.shape[0]==2 else v for k,v in load_file(tmp_path/'turned'/n).items()} for n in info['files'] if n=='head.safetensors'}
    assert heads and any(v.shape[0]==2 for v in heads['head.safetensors'].values())
    save_file(heads['head.safetensors'], tmp_path/'turned'/'head.safetensors', metadata={'format':'pt'})
    from sft_nb.core.basics import sha256_file
    file = tmp_path/'turned'/'head.safetensors'
    info['files']['head.safetensors'] = dict(bytes=file.stat().st_size, sha256=sha256_file(file))
    (tmp_path/'turned'/'sft.json').write_text(json.dumps({**info, 'vocab':info['vocab'][::-1]}))
    code,out,err = run('compare', models/'two', tmp_path/'turned', models/'days.csv')
    assert code==0, err
    assert '0 of 40 rows are predicted differently.' in out and all('+0.0000' in o for o in out.splitlines() if o.startswith(('accuracy','f1','precision')))

def test_compare_mistakes(models, tmp_path):
    assert 'are one folder' in fails('compare', models/'one', models/'one'/'.', models/'days.csv')
    assert 'holds no rows of data' in fails('compare', models/'one', models/'two', models/'days.csv', '--out', models/'two'/'c.csv')
    assert 'nowhere' in fails('compare', models/'one', tmp_path/'nowhere', models/'days.csv')
    assert 'gone.csv is missing' in fails('compare', models/'one', models/'two', tmp_path/'gone.csv')

def test_predictions_are_kept_where_they_are_asked_for(models):
    assert not (models/'one-predictions').exists() and sorted(o.name for o in (models/'two-predictions').iterdir())==['page.html','rows.parquet']
    kept = load_evaluation(models/'two-predictions'/'rows.parquet')
    assert kept.metrics['accuracy']==json.loads((models/'two'/'metrics.json').read_text())['accuracy'] and len(kept)==20
    inside = [o for o in (models/'two').rglob('*') if o.suffix in ('.parquet',) or o.name=='page.html']
    assert inside==[]

def test_kept_predictions_are_not_replaced(models, tmp_path):
    (tmp_path/'new-predictions').mkdir()
    (tmp_path/'new-predictions'/'rows.parquet').write_text('of an earlier run')
    assert 'new-predictions exists already' in fails('finetune', 'text', models/'days.csv', '--out', tmp_path/'new', '--keep-predictions')
    assert not (tmp_path/'new').exists()

@pytest.fixture
def opened(monkeypatch):
    "Addresses that a browser was asked to show"
    seen = []
    monkeypatch.setattr('webbrowser.open', lambda url: seen.append(url) or True)
    return seen

def test_open_in_chromium(models, opened):
    code,out,err = run('open', models/'two')
    assert code==0 and [Path(o).name for o in opened]==['report.html','page.html'], err
    path = next(filter(None, map(shutil.which, browsers)), None)
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-gpu'])
        page,said = b.new_page(),[]
        page.on('console', lambda m: said.append(m.text) if m.type=='error' else None)
        page.on('request', lambda r: said.append(r.url) if not r.url.startswith(('file:','data:')) else None)
        page.goto(opened[0])
        expect(page.locator('h1')).to_contain_text('sft_nb · text')
        page.goto(opened[1])
        expect(page.locator('#count')).to_have_text('1–20 of 20')
        page.get_by_label('result').select_option('correct')
        right = round(20*json.loads((models/'two'/'metrics.json').read_text())['accuracy'])
        expect(page.locator('#count')).to_contain_text(f'of {right}')
        assert said==[]
        b.close()

def test_open_says_where_pages_are(models, opened):
    code,out,_ = run('open', models/'one', '--no-browser')
    assert code==0 and opened==[] and out.strip()==f"Report of the run: {(models/'one'/'report.html').resolve()}"

def test_open_without_a_browser(models, monkeypatch):
    "How to look at the page from another machine, without torch"
    monkeypatch.setattr('webbrowser.open', lambda url: False)
    code,out,err = run('open', models/'two')
    assert code==0 and [o.split(':')[0] for o in out.splitlines()]==['Report of the run', 'Its predictions']
    assert 'ssh -L 8000:127.0.0.1:8000' in err and err.strip().endswith('http://127.0.0.1:8000/report.html') and len(err.strip().splitlines())==1
    script = f"import sys\nfrom sft_nb.cli import main\nassert main(['open', {str(models/'two')!r}, '--no-browser'])==0\nassert not {{'torch','fastai','ipywidgets'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode==0, done.stderr

def test_a_page_from_elsewhere_is_not_opened(models, opened, tmp_path):
    shutil.copytree(models/'one', tmp_path/'gift')
    (tmp_path/'gift'/'report.html').write_text('<html><script>alert(1)</script></html>')
    assert 'a browser might run what is in it' in fails('open', tmp_path/'gift') and opened==[]
    (tmp_path/'gift'/'report.html').unlink()
    assert 'sft_nb evaluate' in fails('open', tmp_path/'gift') and opened==[]

def test_evaluate_writes_a_page_and_rows(models, tmp_path):
    for name in ('page.html','rows.parquet'):
        code,out,err = run('evaluate', models/'two', models/'days.csv', '--out', tmp_path/name)
        assert code==0 and '40 rows' in out, err
    assert len(load_evaluation(tmp_path/'rows.parquet'))==40 and '<script>' in (tmp_path/'page.html').read_text()
    assert 'holds no rows of data' in fails('evaluate', models/'two', models/'days.csv', '--out', models/'two'/'page.html')
