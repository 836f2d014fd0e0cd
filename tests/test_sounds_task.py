"Sounds and their classes: windows that lose nothing, padding that says nothing, encoders cut and cached, saved folders that the library opens"
import io, json
import numpy as np, pandas as pd, pytest, torch, transformers
sf = pytest.importorskip('soundfile')
from sft_nb.checkpoints.weights import quiet_libraries
from sft_nb.cli import main
from sft_nb.core.basics import CheckpointError, DataError, HeadError
from sft_nb.data.load import load_data
from sft_nb.data.sound_classes import cut_windows, sound_coder, SoundAugment
from sft_nb.data.sounds import read_sound
from sft_nb.data.task import get_task, task_of
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.models.speech_model import cut_window
from sft_nb.tasks.small_nets import small_ctc, small_spectrogram_net, small_whisper
from sft_nb.tasks.toys import make_toy
from sft_nb.training.cache import frozen_cache
from sft_nb.training.learner import sft_learner

pytestmark = pytest.mark.usefixtures('home', 'one_thread')
NETS = dict(whisper=lambda p: small_whisper(p, layers=2), group=small_ctc, stable=lambda p: small_ctc(p, do_stable_layer_norm=True, feat_extract_norm='layer'), ast=small_spectrogram_net)

@pytest.fixture(scope='module')
def toy(tmp_path_factory): return make_toy('audio', tmp_path_factory.mktemp('notes'))

@pytest.fixture(scope='module')
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('nets')
    return {k:str(f(folder/k)) for k,f in NETS.items()}

def data(toy, net=None, source=None, **kw): return load_data('audio', toy['source'] if source is None else source, checkpoint=net or toy['checkpoint'], **{**toy['load'], **kw})

def learner(dls, **kw):
    learn = sft_learner(dls, **kw)
    for cb in [o for o in learn.cbs if type(o).__name__=='ProgressCallback']: learn.remove_cb(cb)
    learn.logger = lambda *_: None
    for m in learn.model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    return learn

def scores(model, spec, rows, size):
    loader = spec.task.item_loader(spec, rows, size)
    with torch.no_grad(): return torch.cat([model(b[0] if isinstance(b, tuple) else b) for b in loader])

@pytest.mark.parametrize('net', NETS)
def test_a_prediction_is_the_same_in_any_batch(toy, nets, net):
    dls = data(toy, nets[net])
    model = learner(dls).model.eval()
    assert dls.sft.rows.seconds.max()>dls.sft.preprocess['window'], 'one sound has several windows'
    assert torch.allclose(scores(model, dls.sft, dls.sft.rows, 16), scores(model, dls.sft, dls.sft.rows, 1), atol=1e-5)

def test_silence_behind_a_sound_is_not_pooled(toy, tmp_path):
    "Of a Whisper the mean is over the positions of the sound, whatever their neighbors are"
    dls = data(toy)
    m,(x,_) = learner(dls).model.eval(),dls.valid.one_batch()
    h = m.begin(x)
    changed = {**h, 'hidden':h['hidden'].clone()}
    behind = torch.arange(h['hidden'].shape[2])>=h['places'][...,None]
    changed['hidden'][behind] += 5
    vectors = [m.vectors(o['hidden'].flatten(0, 1)[h['mask'].flatten().bool()], h['places'][h['mask'].bool()]) for o in (h, changed)]
    assert behind.any() and torch.allclose(*vectors, atol=1e-6)

def test_whisper_is_that_of_the_library(toy, nets):
    dls = data(toy, nets['whisper'])
    m,(x,_) = learner(dls).model.eval(),dls.valid.one_batch()
    with torch.no_grad():
        h = m.begin(x)
        for i in range(m.steps): h = {**h, 'hidden':m.layer(i, h['hidden'].flatten(0, 1), None).unflatten(0, h['mask'].shape)}
        with cut_window(m.net, x['input_features'].shape[-1]//2): want = m.net(x['input_features'].flatten(0, 1)).last_hidden_state
    there = h['mask'].flatten().bool()
    assert torch.allclose(m.net.layer_norm(h['hidden'].flatten(0, 1))[there], want[there], atol=1e-5)

@pytest.mark.parametrize('n', [1, 5, 8, 9, 16, 17, 40])
def test_windows_lose_nothing(n):
    parts = cut_windows(np.arange(n), 8)
    assert set(np.concatenate(parts))==set(range(n)) and len(parts)==-(-n//8) and {len(o) for o in parts}=={min(n, 8)}

def test_every_part_of_a_long_sound_counts(toy):
    dls = data(toy)
    model,rng = learner(dls).model.eval(),np.random.default_rng(0)
    x = .1*rng.normal(size=16000*5).astype(np.float32)
    def said(o): return scores(model, dls.sft, pd.DataFrame(dict(audio=[(o, 16000)])), 1)
    for second in range(5):
        y = x.copy()
        y[16000*second:16000*(second+1)] *= .01
        assert not torch.allclose(said(x), said(y), atol=1e-5), second

@pytest.mark.parametrize('net', NETS)
def test_cached_is_live_at_every_border(toy, nets, net):
    def run(border, cached):
        learn = learner(data(toy, nets[net]), freeze=None)
        learn.freeze_to(border)
        if cached:
            with frozen_cache(learn): learn.fit(2, 1e-3)
            assert learn.cached_groups
        else: learn.fit(2, 1e-3)
        return {k:v.clone() for k,v in learn.model.state_dict().items()}
    borders = learner(data(toy, nets[net])).model.borders()
    assert len(borders)==(2 if net in ('group','stable') else 3)
    for b in borders:
        live,cached = run(b, False),run(b, True)
        assert max((live[k]-cached[k]).abs().max().item() for k in live)<1e-5, b

@pytest.mark.parametrize('net', NETS)
def test_the_library_opens_its_own_head(toy, nets, net, tmp_path):
    learn = learner(data(toy, nets[net], **(dict(window='whole') if net=='whisper' else {})), head='hf')
    learn.fit_head(1)
    folder,ev = save_predictor(learn, tmp_path/'m', metrics={}),evaluate(learn, 'train')
    with quiet_libraries(): other = transformers.AutoModelForAudioClassification.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    short = [i for i,o in enumerate(ev.rows.audio) if len(read_sound(o))<.95*sound_coder(learn.dls.sft).size][:4]
    for i in short:
        with torch.no_grad(): p = other(**extractor(read_sound(ev.rows.audio[i]), sampling_rate=16000, return_tensors='pt')).logits.softmax(-1)[0]
        assert other.config.id2label[int(p.argmax())]==ev.rows.prediction[i] and float(p.max())==pytest.approx(ev.rows.probability[i], abs=1e-4)
    assert len(short)==4

def test_the_head_of_the_library_needs_the_whole_window(toy):
    with pytest.raises(HeadError, match="hears all 1 s, and the data were loaded in windows of 0.5 s.*window='whole'"): learner(data(toy, window=.5), head='hf')
    with pytest.raises(HeadError, match='needs feature maps'): learner(data(toy), head='flatten:8')

@pytest.mark.parametrize('net', NETS)
def test_a_saved_folder_predicts_and_is_a_checkpoint(toy, nets, net, tmp_path):
    learn = learner(data(toy, nets[net]))
    learn.fine_tune(1)
    folder,ev = save_predictor(learn, tmp_path/'m', metrics={}),evaluate(learn)
    out = load_predictor(folder).predict(list(ev.rows.audio))
    assert out.prediction.tolist()==ev.rows.prediction.tolist() and np.allclose(out.probability, ev.rows.probability, atol=1e-5)
    again = learner(data(toy, str(folder))).model
    assert all(torch.equal(a, b) for (n,a),(_,b) in zip(again.net.state_dict().items(), learn.model.net.state_dict().items()))

def test_several_labels(toy, tmp_path):
    files = sorted(toy['source'].rglob('*.wav'))
    table = pd.DataFrame(dict(audio=[str(f) for f in files], label=[[f.parent.name, 'long'] if len(read_sound(f))>9000 else [f.parent.name] for f in files]))
    learn = learner(data(toy, source=table))
    assert learn.dls.sft.multi_label and set(learn.dls.sft.vocab)=={'rising','falling','long'}
    learn.fit_head(2)
    assert isinstance(evaluate(learn).rows.prediction[0], list)

def test_bad_sounds_are_named(toy, tmp_path):
    rng = np.random.default_rng(0)
    noise = lambda n: .1*rng.normal(size=n).astype(np.float32)
    for i in range(4):
        for label in 'ab':
            (tmp_path/label).mkdir(exist_ok=True)
            sf.write(tmp_path/label/f'{i}.wav', noise(8000), 22050)
    sf.write(tmp_path/'a'/'empty.wav', noise(0), 8000)
    sf.write(tmp_path/'a'/'short.wav', noise(100), 8000)
    sf.write(tmp_path/'b'/'silent.wav', np.zeros(8000, np.float32), 8000)
    sf.write(tmp_path/'b'/'long.wav', noise(8000*4), 8000)
    (tmp_path/'b'/'text.wav').write_text('no sound')
    with pytest.raises(DataError) as e: data(toy, source=tmp_path, max_seconds=3)
    for words in ('empty.wav: is empty','short.wav: is too short: 0.013 s','silent.wav: is silent','long.wav: is too long: 4.0 s, at most 3 s','text.wav: cannot be read as sound'):
        assert words in str(e.value)
    dls = data(toy, source=tmp_path, max_seconds=3, bad='skip')
    assert len(dls.sft.skipped)==5 and len(dls.sft.rows)==8

@pytest.mark.parametrize('kw,says', [(dict(window=2), "window must be seconds from 0.1 to 1, or 'whole', got 2"), (dict(window='long'), "got 'long'"),
    (dict(max_seconds=0), 'max_seconds must be above 0, got 0'),
    (dict(augment='loud'), "augment='loud' is unknown. Valid: True, False, or a dict of gain, shift, noise, mask"), (dict(augment=dict(gian=3)), "no 'gian'. Did you mean 'gain'"),
    (dict(augment=dict(noise=3)), 'noise must be two numbers of decibels'), (dict(augment=dict(mask=2)), 'mask must be a share')])
def test_mistakes_are_said(toy, kw, says):
    with pytest.raises(DataError) as e: data(toy, **kw)
    assert says in str(e.value)

def test_other_checkpoints_are_refused(toy, nets):
    with pytest.raises(DataError, match='is always 1 s'): data(toy, nets['ast'], window=.5)
    with pytest.raises(DataError, match="'mask' is for spectrograms"): data(toy, nets['group'], augment=dict(mask=.1))
    with pytest.raises(CheckpointError, match="does not fit task 'audio'"): data(toy, 'timm:test_resnet', pretrained=False)

def test_augmentation_is_seeded_and_for_training_alone(toy):
    def run(seed):
        torch.manual_seed(seed)
        return dls.train.new(shuffle=False).one_batch()[0]['input_features']
    dls = data(toy, augment=True)
    plain = data(toy, augment=False)
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert torch.equal(dls.valid.one_batch()[0]['input_features'], plain.valid.one_batch()[0]['input_features'])
    learn,still = learner(dls),learner(plain)
    assert learn.augments and not still.augments
    with learn.no_augment(): assert torch.equal(run(1), run(2))
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    learn.fit_head(2)
    still.fit_head(2)
    assert all(torch.equal(a, b) for a,b in zip(learn.model.head.parameters(), still.model.head.parameters())), 'the cache is filled without augmentation'

def test_each_change_is_what_it_says():
    x = np.sin(np.arange(16000)/20).astype(np.float32)
    torch.manual_seed(0)
    quiet = SoundAugment(gain=12, shift=0, noise=None)
    ratio = [quiet.changed(x)[100]/x[100] for _ in range(200)]
    assert .25<min(ratio)<.35 and 2.8<max(ratio)<4.
    late = SoundAugment(gain=0, shift=.5, noise=None, size=16000)
    starts = [len(late.changed(x))-16000 for _ in range(200)]
    assert min(starts)<400 and 7000<max(starts)<=8000 and (late.changed(x)[-16000:]==x).all()
    rough = SoundAugment(gain=0, shift=0, noise=(20, 20))
    assert 10*np.log10((x**2).mean()/((rough.changed(x)-x)**2).mean())==pytest.approx(20, abs=.3)

def test_measures_and_baselines(toy):
    learn = learner(data(toy))
    learn.fit_head(None)
    ev = evaluate(learn)
    assert list(ev.baselines())==['majority','spectrum','untuned']
    assert {'loudness','duration'}<=set(get_task('audio').inputs[0].measured) and len(ev.slices('loudness', bins=2, least=1))>=2
    tone = get_task('audio').inputs[0].measures((np.sin(np.arange(8000)).astype(np.float32), 8000))
    assert tone['duration']==1 and tone['loudness']==pytest.approx(0, abs=.01)
    assert task_of(['audio','label']).name=='audio' and task_of(['audio','text']).name=='speech'

def test_bytes_samples_and_cells_of_datasets(toy):
    model_dls = data(toy)
    learn = learner(model_dls)
    f = str(next(toy['source'].rglob('1.wav')))
    x,rate = sf.read(f, dtype='float32')
    items = [f, open(f, 'rb').read(), (x, rate), dict(array=x, sampling_rate=rate)]
    got = scores(learn.model.eval(), model_dls.sft, pd.DataFrame(dict(audio=pd.Series(items, dtype=object))), 4)
    assert torch.allclose(got, got[:1].expand_as(got), atol=1e-5)

def test_command_line(toy, tmp_path, capsys):
    line = ['finetune', 'audio', str(toy['source']), '--checkpoint', toy['checkpoint'], '--out', str(tmp_path/'m'), '--epochs', '1', '--option', 'window=0.5']
    assert main(line)==0 and json.loads((tmp_path/'m'/'metrics.json').read_text())['n_train']==13
    f = str(next(toy['source'].rglob('2.wav')))
    capsys.readouterr()
    assert main(['predict', str(tmp_path/'m'), f])==0
    out = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(out.columns)==['item','prediction','probability'] and out.prediction[0] in ('rising','falling')
    assert main(['evaluate', str(tmp_path/'m'), str(toy['source'])])==0
    (tmp_path/'no.wav').write_text('no sound')
    capsys.readouterr()
    assert main(['predict', str(tmp_path/'m'), str(tmp_path/'no.wav')])==2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said)==1 and 'no.wav: cannot be read as sound' in said[0]

@pytest.mark.parametrize('net', ['whisper','ast'])
def test_onnx_says_the_same(toy, nets, net, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    from sft_nb.deployment.onnx_file import export_onnx
    dls = data(toy, nets[net])
    learn = learner(dls)
    session = onnxruntime.InferenceSession(str(export_onnx(learn, tmp_path/'m.onnx')))
    x,_ = dls.valid.one_batch()
    given = {k:v[:,0].numpy() for k,v in x.items() if k not in ('mask','sounds')}
    one = {k:(v[:,:1] if torch.is_tensor(v) else v) for k,v in x.items()}
    with torch.no_grad(): want = learn.model.eval()(one)
    assert np.allclose(session.run(None, given)[0], want, atol=1e-4)

def test_waves_are_not_written_as_onnx(toy, nets, tmp_path):
    from sft_nb.deployment.onnx_file import export_onnx
    with pytest.raises(CheckpointError, match='not written as ONNX. Valid'): export_onnx(learner(data(toy, nets['group'])), tmp_path/'m.onnx')

def test_prompts_of_a_name_stay_together(tmp_path):
    from sft_nb.tasks.demo_data import languages_table
    rng,names = np.random.default_rng(0),['a','b','only-here','beep','long']
    for l in ('x','y'):
        (tmp_path/l).mkdir()
        for n in names[:2]+names[3:]: sf.write(tmp_path/l/f'{n}.wav', .1*rng.normal(size=8000*(9 if n=='long' and l=='y' else 1)), 8000)
    sf.write(tmp_path/'x'/'only-here.wav', .1*rng.normal(size=8000), 8000)
    t = languages_table({l:tmp_path/l for l in ('x','y')})
    assert list(t.prompt)==['a','a','b','b'] and list(t.label)==['x','y']*2
