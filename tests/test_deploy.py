"ONNX files: what the model says for other numbers of items and tokens, in 8 bits too, and from the command line"
import json
import numpy as np, onnxruntime, pytest, torch
from sft_nb.data.task import get_task
from sft_nb.data.load import load_data
from sft_nb.training.learner import sft_learner
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.deployment.onnx_file import export_onnx, ExportError
from sft_nb.cli import main
from sft_nb.inspection.attributions import explain
from sft_nb.tasks.toys import make_toy

def learner(task, folder, checkpoint=None, pretrained=None, **kw):
    toy = make_toy(task, folder)
    load = dict(toy['load'], **kw)
    return sft_learner(load_data(task, toy['source'], checkpoint=checkpoint or toy['checkpoint'], pretrained=toy['pretrained'] if pretrained is None else pretrained, **load), freeze=None)

def scores(path, **inputs): return onnxruntime.InferenceSession(str(path)).run(None, {k:np.asarray(v) for k,v in inputs.items()})[0]

def check_text(learn, path, tolerance=1e-4):
    "Texts of several lengths, one and many at once"
    model = learn.model.cpu().eval()
    for n,size in ((1,3), (2,9), (7,20)):
        x = dict(input_ids=torch.randint(5, 30, (n,size)), attention_mask=torch.ones(n, size, dtype=torch.long))
        x['attention_mask'][-1,size//2+1:] = 0
        with torch.no_grad(): want = model(x).numpy()
        got = scores(path, **x)
        assert got.shape==want.shape and np.abs(got-want).max()<tolerance

def test_text(tmp_path, capsys):
    learn = learner('text', tmp_path/'toy')
    save_predictor(learn, tmp_path/'model', metrics={})
    assert main(['export', str(tmp_path/'model'), '--out', str(tmp_path/'m.onnx')])==0
    assert 'MB' in capsys.readouterr().out
    check_text(learn, tmp_path/'m.onnx')
    small = export_onnx(load_predictor(tmp_path/'model', device='cpu'), tmp_path/'small.onnx', int8=True)
    assert small.stat().st_size<(tmp_path/'m.onnx').stat().st_size
    check_text(learn, small, tolerance=.2)

@pytest.mark.parametrize('args,words', [(['--out','m.bin'], "unknown ending '.bin'"), (['--out','m.onnx','--int8'], 'offered for transformers networks')])
def test_mistakes(tmp_path, capsys, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    save_predictor(learner('image', tmp_path/'toy'), tmp_path/'model', metrics={})
    assert main(['export', str(tmp_path/'model'), *args])==2
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines())==1 and not (tmp_path/'m.onnx').exists()

def test_a_task_that_writes_token_after_token(tmp_path):
    learn = learner('translation', tmp_path/'toy')
    with pytest.raises(ExportError, match="Task 'translation' cannot be written as ONNX. Valid: audio, image, text"): export_onnx(learn, tmp_path/'m.onnx')

@pytest.mark.slow
def test_packaged_image(tmp_path):
    learn = learner('image', tmp_path/'toy', 'pip:efficientnet-lite0', True, size=96)
    path = export_onnx(learn, tmp_path/'m.onnx')
    x = torch.randn(5, 3, 96, 96)
    with torch.no_grad(): want = learn.model.cpu().eval()(x).numpy()
    off = np.abs(scores(path, image=x)-want).max()
    print(f'efficientnet-lite0: {path.stat().st_size/1e6:.1f} MB, differs by at most {off:.2g}')
    assert off<1e-4 and json.loads(onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map['sft_nb'])['vocab']==['round','square']

@pytest.mark.slow
def test_packaged_text(tmp_path):
    learn = learner('text', tmp_path/'toy', 'pip:all-minilm-l6-v2', True)
    path = export_onnx(learn, tmp_path/'m.onnx')
    check_text(learn, path)
    small = export_onnx(learn, tmp_path/'small.onnx', int8=True)
    print(f'all-minilm-l6-v2: {path.stat().st_size/1e6:.1f} MB, in 8 bits {small.stat().st_size/1e6:.1f} MB')
    assert small.stat().st_size<.7*path.stat().st_size # the table of words, half of this network, stays as it is

def test_an_opened_model_is_explained_after_it_has_predicted(tmp_path):
    "What it predicts with has its batch norms folded and no gradients; an explanation needs them"
    learn = learner('image', tmp_path/'toy')
    items = [str(o) for o in learn.spec.rows.image[:3]]
    model = load_predictor(save_predictor(learn, tmp_path/'model', metrics={}), device='cpu')
    fresh = [o['image'].values for o in explain(model, items)]
    model.predict(items)
    again = [o['image'].values for o in explain(model, items)]
    assert all(np.abs(a-b).max()<1e-5*np.abs(a).max() for a,b in zip(fresh, again)) and np.abs(fresh[0]).max()>0

def test_a_model_that_has_predicted_is_exported(tmp_path):
    "It predicts by operations of this processor, which ONNX does not have"
    learn = learner('image', tmp_path/'toy')
    model = load_predictor(save_predictor(learn, tmp_path/'model', metrics={}), device='cpu')
    said = model.predict_proba([str(o) for o in learn.spec.rows.image[:3]])
    assert model.model.folded is not None
    path = export_onnx(model, tmp_path/'m.onnx')
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad(): want = learn.model.cpu().eval()(x).numpy()
    assert np.abs(scores(path, image=x)-want).max()<1e-4
    assert np.allclose(model.predict_proba([str(o) for o in learn.spec.rows.image[:3]])[model.vocab], said[model.vocab], atol=1e-5)
