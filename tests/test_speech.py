"Dense checks of speech: what is refused and how it is said, the cache, both kinds of models in plain transformers, the packaged Whisper against its own runtime"
import json
import numpy as np, pandas as pd, pytest, torch
sf = pytest.importorskip('soundfile')
from sft_nb.core.basics import cache_home, CheckpointError, DataError, FitError, HeadError
from sft_nb.checkpoints.weights import opened
from sft_nb.checkpoints.ctranslate import read_ctranslate, whisper_folder
from sft_nb.data.load import load_data
from sft_nb.data.sounds import read_sound
from sft_nb.training.learner import sft_learner
from sft_nb.training.cache import activations
from sft_nb.training.callbacks import KeepBest
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.tasks.small_nets import small_ctc, small_whisper
from sft_nb.core.metrics import speech_parts, speech_scores
from sft_nb.data.speech import speech_coder, speech_rows_loader, speech_train_loader
from sft_nb.models.speech_model import speech_model
from sft_nb.tasks.demo_data import prompts_demo
from sft_nb.tasks.toys import toy_sounds

@pytest.fixture
def toy(tmp_path, home, one_thread): return toy_sounds(tmp_path/'toy')

@pytest.fixture
def ctc(tmp_path): return str(small_ctc(tmp_path/'ctc', 'abcdefghijklmnopqrstuvwxyz'))

def data(toy, **kw): return load_data('speech', toy['source'], **{'checkpoint':toy['checkpoint'], 'valid':.25, **kw})

BAD = {'0.wav':lambda f: f.write_bytes(b'no sound'), '1.wav':lambda f: sf.write(f, np.zeros(0), 8000), '2.wav':lambda f: sf.write(f, np.zeros(4000), 8000),
       '3.wav':lambda f: sf.write(f, np.r_[np.ones(4000), np.nan], 8000, subtype='FLOAT'), '4.wav':lambda f: sf.write(f, .1*np.ones(9000), 8000), '5.wav':lambda f: f.unlink()}
SAID = ['line 2: cannot be read as sound', 'line 3: is empty', 'line 4: is silent', 'line 5: holds 1 samples that are NaN', 'line 6: is too long: 1.1 s, at most 1 s', 'line 7: is missing']

def test_bad_sounds_are_named_at_once(toy, tmp_path):
    for n,spoil in BAD.items(): spoil(tmp_path/'toy'/n)
    with pytest.raises(DataError) as e: data(toy)
    for words in SAID: assert f'words.csv {words}' in str(e.value)
    assert data(toy, bad='skip').sft.skipped.row.nunique()==6

@pytest.mark.parametrize('option,words', [(dict(window=7), "expected seconds from"), (dict(window='half'), "window='half'"), (dict(max_seconds=9), 'at most 1'),
    (dict(max_seconds=-1), 'above 0'), (dict(language='de'), 'knows one language'), (dict(num_beams=1.5), 'num_beams=1.5')])
def test_options_are_checked(toy, option, words):
    with pytest.raises(DataError, match=words): data(toy, **option)

def test_several_languages_are_asked_for(toy, tmp_path):
    toy['checkpoint'] = str(small_whisper(tmp_path/'several', languages=('en','zh')))
    with pytest.raises(DataError, match='is for 2 languages: say which'): data(toy)
    with pytest.raises(DataError, match="'xx' is no language"): data(toy, language='xx')
    assert speech_coder(data(toy, language='en').sft).prompt==[257,258,261,265]

def test_runs_in_two_languages_do_not_disturb_each_other(toy, tmp_path):
    from sft_nb.data.speech import _processor
    toy['checkpoint'] = str(small_whisper(tmp_path/'several', languages=('en','zh')))
    learn,other = (sft_learner(data(toy, language=o)) for o in ('en','zh'))
    _processor.cache_clear()
    assert [speech_coder(o.spec).prompt[1] for o in (learn,other,learn)]==[258,259,258]
    learn.fit_head(1, 1e-3)
    ev = evaluate(learn)
    save_predictor(other, tmp_path/'zh')
    folder = save_predictor(learn, tmp_path/'en')
    assert load_predictor(folder).predict(list(ev.rows.audio)).prediction.tolist()==ev.rows.prediction.tolist()
    from transformers import AutoProcessor
    assert [AutoProcessor.from_pretrained(tmp_path/o).tokenizer.prefix_tokens[1] for o in ('en','zh')]==[258,259]

@pytest.mark.parametrize('rate', [8000, 11025, 44100])
@pytest.mark.parametrize('ending', ['wav','flac','ogg','mp3'])
def test_every_format_and_rate(tmp_path, ending, rate):
    if ending=='mp3' and rate==11025: rate = 22050
    t = np.arange(rate)/rate
    sf.write(tmp_path/f'a.{ending}', np.stack([.4*np.sin(2*np.pi*500*t)]*2, 1), rate)
    x = read_sound(tmp_path/f'a.{ending}')
    assert abs(np.abs(np.fft.rfft(x)).argmax()*16000/len(x)-500)<3 and abs(len(x)-16000)<2500

def test_cache_is_exact(toy):
    learn = sft_learner(data(toy))
    rows,border = learn.spec.rows,learn.model.borders()[0]
    with torch.no_grad(): live = learn.model.eval().prefix(border, next(iter(speech_train_loader(learn.spec, rows)))[0])['hidden']
    assert torch.equal(activations(learn, border, rows).batch(range(len(rows)))['hidden'], live) and live.shape[1]==learn.spec.preprocess['positions']<50

def test_saved_hears_the_whole_window(toy, tmp_path):
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor
    learn = sft_learner(data(toy))
    learn.fit_head(2, 3e-3)
    net = AutoModelForSpeechSeq2Seq.from_pretrained(save_predictor(learn, tmp_path/'saved'))
    assert net.config.max_source_positions==len(net.model.encoder.embed_positions.weight)==AutoProcessor.from_pretrained(tmp_path/'saved').feature_extractor.nb_max_frames//2==50
    assert torch.equal(net.model.encoder.embed_positions.weight, opened(toy['checkpoint'], 'WhisperForConditionalGeneration').model.encoder.embed_positions.weight)

def test_labels_keep_their_end(toy):
    dls = data(toy)
    x,y = dls.one_batch()
    assert ((y==256).sum(1)==1).all() and (y==-100).any() and (y[:,0]==264).all()

def test_best_is_the_lowest_rate(toy):
    learn = sft_learner(data(toy))
    best = KeepBest()
    learn.fit_head(3, 3e-3, cbs=best)
    assert (best.watched, best.up)==('wer', False) and best.best==min(o['wer'] for o in learn.history)

def test_ctc_in_plain_transformers(toy, ctc, tmp_path):
    from transformers import AutoModelForCTC, AutoProcessor
    learn = sft_learner(data(toy, checkpoint=ctc), freeze=None)
    learn.fit(2, 3e-3)
    folder = save_predictor(learn, tmp_path/'saved')
    net,processor = AutoModelForCTC.from_pretrained(folder).eval(),AutoProcessor.from_pretrained(folder)
    files = list(learn.spec.rows.audio)
    with torch.no_grad(): want = [processor.batch_decode(net(**processor(read_sound(o), sampling_rate=16000, return_tensors='pt')).logits.argmax(-1))[0].strip() for o in files]
    assert load_predictor(folder).predict(files).prediction.tolist()==want

def test_ctc_cached_equals_live(toy, ctc):
    from sft_nb.training.cache import frozen_cache
    from contextlib import nullcontext
    def run(group, cached):
        learn = sft_learner(data(toy, checkpoint=ctc), freeze=None)
        for m in learn.model.modules():
            if isinstance(m, torch.nn.Dropout): m.p = 0.
        learn.freeze_to(group)
        with frozen_cache(learn) if cached else nullcontext(): learn.fit(1, 1e-3)
        return learn.model.state_dict()
    for group in (1, -1):
        a,b = run(group, True),run(group, False)
        assert max((a[k]-b[k]).abs().max() for k in a)<1e-5

def test_ctc_refuses(toy, ctc):
    dls = data(toy, checkpoint=ctc)
    for kw,error,words in ((dict(label_smoothing=.1), FitError, 'the CTC loss has none'), (dict(loss='focal'), FitError, 'valid are None'),
                           (dict(head=[8]), HeadError, 'keeps its own output layer')):
        with pytest.raises(error, match=words): sft_learner(dls, **kw)
    rows = pd.read_csv(toy['source']).assign(audio=lambda d: [str(toy['source'].parent/o) for o in d.audio])
    rows.loc[0, 'text'] = 'word '*60
    with pytest.raises(DataError, match='row 0: text: .* frames are needed'): load_data('speech', rows, checkpoint=ctc)

def test_the_runtimes_own_converter_and_back(tmp_path):
    "A small Whisper that ctranslate2 itself has put into its layout"
    ct = pytest.importorskip('ctranslate2')
    source = small_whisper(tmp_path/'small')
    ct.converters.TransformersConverter(str(source)).convert(str(tmp_path/'ct'), quantization='float16')
    (tmp_path/'ct'/'tokenizer.json').write_bytes((source/'tokenizer.json').read_bytes())
    got,want = (opened(o, 'WhisperForConditionalGeneration').state_dict() for o in (whisper_folder(tmp_path/'ct', tmp_path/'back'), source))
    assert set(got)==set(want) and all(torch.equal(got[k], want[k].half().float()) for k in want)
    assert read_ctranslate(tmp_path/'ct'/'model.bin')[0]=='WhisperSpec'

def test_other_families_are_refused(toy, tmp_path):
    from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration
    net = Speech2TextForConditionalGeneration(Speech2TextConfig(vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1,
                                                                encoder_ffn_dim=8, decoder_ffn_dim=8, conv_channels=8))
    net.save_pretrained(tmp_path/'other')
    with pytest.raises(CheckpointError, match='Valid for speech: Whisper, and CTC models'): data(toy, checkpoint=str(tmp_path/'other'))

def test_losses_a_row_of_both_kinds(toy, ctc):
    for kw in (dict(), dict(checkpoint=ctc)):
        learn = sft_learner(data(toy, **kw))
        ev,net = evaluate(learn, 'train'),learn.model.net.eval()
        assert len(ev.top_losses(3)[0])==3 and ev.worst(1).loss.iloc[0]==ev.rows.loss.max()
        for r in ev.rows[:4].itertuples():
            x,y = next(iter(speech_rows_loader(learn.spec, pd.DataFrame(dict(audio=[r.audio], text=[r.target])), 1, labelled=True)))
            with torch.no_grad(): want = net(**{k:v for k,v in x.items() if k in ('input_features','input_values','attention_mask')}, labels=y).loss
            assert r.loss==pytest.approx(want.item()/(y.shape[1] if kw else 1), rel=1e-4)

def test_intervals_come_from_sums(toy):
    rows = pd.DataFrame(dict(target=['one two','ten','go on now','six'], prediction=['one to','ten','go now','six six']))
    parts,w = speech_parts(rows),np.array([[1,0,2,1],[1,1,1,1]])
    for k,v in parts(w).items(): assert v==pytest.approx([speech_scores(rows.iloc[np.repeat(range(4), o)])[k] for o in w])

def test_fewer_errors_are_better_by_every_rate(toy):
    ev = evaluate(sft_learner(data(toy)))
    ev.rows['item'] = range(len(ev))
    right = type(ev)(ev.rows.assign(prediction=ev.rows.target), ev.task)
    assert set(right.compare(ev).verdict)=={'better'} and set(ev.compare(ev).verdict)=={'no difference shown'}

def test_demo_says_what_training_changed(toy, tmp_path, monkeypatch, capsys):
    from dataclasses import replace
    from sft_nb.data import task as tasks
    from sft_nb.cli import main
    demo = dict(source=toy['source'], load=dict(checkpoint=toy['checkpoint'], valid=.25), fine_tune=dict(freeze_epochs=1), untuned=True, keep_best=False)
    monkeypatch.setitem(tasks._tasks, 'speech', replace(tasks.get_task('speech'), demo=lambda folder: demo))
    assert main(['demo','speech','--out',str(tmp_path/'out')])==0
    first,last = capsys.readouterr().out.splitlines()
    metrics = json.loads((tmp_path/'out'/'metrics.json').read_text())
    assert first.startswith(f"wer untuned {metrics['untuned_wer']:.3f} (") and first.split(': ')[-1] in ('better','worse','no difference shown')
    assert last.startswith(f"wer {metrics['wer']:.3f} ·") and 'Against the untuned model' in (tmp_path/'out'/'report.html').read_text()

@pytest.mark.slow
def test_the_packaged_whisper_writes_what_its_runtime_writes(one_thread):
    ct = pytest.importorskip('ctranslate2')
    from sft_nb.checkpoints.assets import fetch
    rows = pd.read_csv(prompts_demo(cache_home())['source']).sample(24, random_state=1).reset_index(drop=True)
    spec = load_data('speech', rows).sft
    coder,model = speech_coder(spec),speech_model(spec).eval()
    runtime = ct.models.Whisper(str(fetch('whisper-tiny.en')), device='cpu', compute_type='float32', intra_threads=1)
    for o in spec.rows.audio:
        x = coder.batch([coder.sound(o)])
        said = runtime.generate(ct.StorageView.from_array(x['input_features'].numpy()), [coder.prompt], beam_size=1)[0].sequences_ids[0]
        assert coder.say(model.generate(x).tokens)==[coder.tokenizer.decode(said, skip_special_tokens=True).strip()]
