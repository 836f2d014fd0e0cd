"Dense checks of speech: what is refused and how it is said, the cache, both kinds of models in plain transformers, the packaged Whisper against its own runtime"
import json
import numpy as np, pandas as pd, pytest, torch
sf = pytest.importorskip('soundfile')
from sft_nb.core.basics import cache_home, CheckpointError, DataError, FitError, HeadError
from sft_nb.checkpoints.weights import opened
from sft_nb.checkpoints.ctranslate import read_ctranslate, whisper_folder
from sft_nb.data.load import load_data
from sft_nb.data.sounds import check_sounds, read_sound, sound_problem, sound_seconds
from sft_nb.training.learner import sft_learner
from sft_nb.training.cache import activations
from sft_nb.training.callbacks import KeepBest
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.evaluation.tables import evaluate_table, load_evaluation
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.tasks.small_nets import small_ctc, small_whisper
from sft_nb.core.metrics import normalized, speech_note, speech_parts, speech_scores, spoken_language
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

@pytest.mark.parametrize('option,words', [(dict(window=7), 'window must be seconds from'), (dict(window='half'), "got 'half'"), (dict(max_seconds=9), 'at most 1'),
    (dict(max_seconds=-1), 'above 0'), (dict(language='de'), 'knows one language'), (dict(num_beams=1.5), 'from 1 up, got 1.5')])
def test_options_are_checked(toy, option, words):
    with pytest.raises(DataError, match=words): data(toy, **option)

def test_several_languages_are_asked_for(toy, tmp_path):
    toy['checkpoint'] = str(small_whisper(tmp_path/'several', languages=('en','zh')))
    with pytest.raises(DataError, match='is for 2 languages: choose one'): data(toy)
    with pytest.raises(DataError, match="'xx' is not a language"): data(toy, language='xx')
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

def tone(seconds=1., rate=16000, hz=440, peak=.5): return (peak*np.sin(2*np.pi*hz*np.arange(int(seconds*rate))/rate)).astype(np.float32)

NOTHING_HEARD = {'channels cancel': ((np.stack([tone(), -tone()], 1), 16000), 'is silent once its 2 channels are mixed: they cancel each other. Keep one of them'),
    'nearly cancel': ((np.stack([tone(), -.999*tone()], 1), 16000), 'they cancel each other'), 'cancel in 5.1': ((np.stack([tone(), -tone(), *[0*tone()]*4], 1), 16000), 'its 6 channels'),
    'steady': ((np.full(16000, .3), 16000), 'is silent: its 1.0 s are constant at 0.3'), 'zeros': ((np.zeros(8000, np.int16), 8000), 'is silent: its 1.0 s stay below -80 dB'),
    'above what is heard': ((tone(rate=48000, hz=15000), 48000), 'is silent at 16,000 Hz: all of it is above 8,000 Hz'),
    'nothing left': ((np.array([.5]), 192000), 'leave none at 16,000 Hz'), 'infinite': ((np.r_[tone(), np.inf].astype(np.float32), 16000), 'holds 1 samples that are NaN or infinite'),
    'NaN in one channel': ((np.stack([tone(), np.r_[tone()[1:], np.nan]], 1), 16000), 'holds 1 samples that are NaN'),
    'sixteen bits as floats': ((tone(peak=32000), 16000), 'reaches 32,000: samples that are not whole numbers must be between -1 and 1. Divide them'),
    'a rate of nothing': ((tone(), 7), 'has a rate of 7 Hz. Expected 1,000 to 1,000,000 Hz')}

@pytest.mark.parametrize('what', NOTHING_HEARD)
def test_what_is_checked_is_what_is_heard(what):
    sound,words = NOTHING_HEARD[what]
    assert words in sound_problem(sound)
    x,rate = sound
    assert words in sound_problem(dict(array=x, sampling_rate=rate))

HEARD = [(np.stack([tone(), 0*tone()], 1), 16000), (np.stack([tone(), *[0*tone()]*5], 1), 44100), ((tone()*32767).astype(np.int16), 16000), ((tone()*2**31*.99).astype(np.int32), 8000),
         ((tone()*127+128).astype(np.uint8), 16000), ((tone()*32767).astype(int).tolist(), 16000), (tone(peak=1.4), 16000), (tone(peak=1e-3), 16000), (tone()+.2, 16000)]

@pytest.mark.parametrize('sound', HEARD, ids=range(len(HEARD)))
def test_what_can_be_heard_is_not_refused(sound): assert sound_problem(sound) is None

def test_whole_numbers_of_a_list_are_sixteen_bits(): assert np.abs(read_sound(((tone()*32767).astype(int).tolist(), 16000))-tone()).max()<1e-3

@pytest.mark.parametrize('kind,ending', [('PCM_16','wav'), ('PCM_24','wav'), ('DOUBLE','wav'), (None,'flac'), ('VORBIS','ogg'), (None,'mp3')])
def test_channels_that_cancel_in_a_file(tmp_path, kind, ending):
    kind = dict(subtype=kind)
    f,good = tmp_path/f'a.{ending}',tmp_path/f'b.{ending}'
    sf.write(f, np.stack([tone(), -tone()], 1), 16000, **kind)
    sf.write(good, np.stack([tone(), .5*tone()], 1), 16000, **kind)
    for o in (f, f.read_bytes(), dict(bytes=f.read_bytes(), path=None), dict(bytes=None, path=str(f))): assert 'they cancel each other' in sound_problem(o)
    assert sound_problem(good) is None

def with_total(data, n):
    "A FLAC whose head names so many samples"
    return data[:21]+bytes([data[21]&0xf0|n>>32])+(n&0xffffffff).to_bytes(4, 'big')+data[26:]

def with_size(data, n):
    "A WAV whose head names so many bytes"
    at = data.index(b'data')
    return data[:at+4]+n.to_bytes(4, 'little')+data[at+8:]

def test_the_head_of_a_file_is_not_believed(tmp_path, capsys):
    for o in ('flac','wav','mp3'): sf.write(tmp_path/f'a.{o}', tone(2.), 16000)
    flac,wav,mp3 = ((tmp_path/f'a.{o}').read_bytes() for o in ('flac','wav','mp3'))
    for data in (*(with_total(flac, n) for n in (0, 2**36-1, 16000*3600)), *(with_size(wav, n) for n in (2**32-1, 0x7ffff000, 10**9))):
        assert sound_problem(data) is None and sound_seconds(data)==2. and len(read_sound(data))==32000
    for n in (0, 16000): assert f'has a header for {n:,} bytes of sound, and' in sound_problem(with_size(wav, n))
    assert sound_problem(wav+b'LIST\4\0\0\0abcd') is None
    assert check_sounds(pd.DataFrame(dict(audio=[wav, mp3[:len(mp3)//2], wav[:20000], with_total(flac, 16000*3600)])))==[]
    assert '3 sound files end before the length in the header: the part that exists is heard. The first is' in capsys.readouterr().err
    assert 'FLAC sound that is damaged or cut off' in sound_problem(flac[:len(flac)//2])
    for start,words in ((b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'), (b'<!DOCTYPE html><html>', 'a page of HTML'), (b'\0\0\0\x18ftypM4A ', 'an M4A sound')):
        assert words in sound_problem(start+bytes(200)) and 'Convert it to wav, flac, ogg or mp3' in sound_problem(start+bytes(200))

def test_a_long_file_is_read_no_further_than_is_heard(tmp_path):
    sf.write(tmp_path/'long.flac', np.tile(tone(1.), 100), 16000)
    assert sound_problem(tmp_path/'long.flac')=='is too long: 100.0 s, at most 30 s are heard. Cut it where nobody speaks'
    assert 'is too long: more than 30 s' in sound_problem(with_total((tmp_path/'long.flac').read_bytes(), 0))
    assert sound_seconds(tmp_path/'long.flac')==100
    sf.write(tmp_path/'long.flac', tone(.5), 16000)
    assert sound_seconds(tmp_path/'long.flac')==.5

def test_seconds_of_the_rows_are_those_that_are_heard(toy, tmp_path):
    f = tmp_path/'toy'/'3.wav'
    sf.write(tmp_path/'a.flac', sf.read(f)[0], 8000)
    f.write_bytes(with_total((tmp_path/'a.flac').read_bytes(), 8000*50))
    dls = data(toy, window=None)
    assert dls.sft.rows.seconds.max()<1 and dls.sft.preprocess['positions']<=50

def rates(target, prediction, language=None): return speech_scores(pd.DataFrame(dict(target=[target], prediction=[prediction])), language)

@pytest.mark.parametrize('language', [None, 'de', 'deu', 'German', 'de-AT'])
def test_english_rules_are_for_english(language):
    assert rates('komm um acht', 'komm acht', language)['wer']==1/3 and rates('Das ist Lars', 'das isst Lars', language)['wer']==1/3
    assert rates("Wie geht's?", 'wie gehts', language)['wer']>0 and rates('Ja, genau!', 'ja genau', language)=={k:0. for k in ('wer','cer','wer_plain','cer_plain')}

@pytest.mark.parametrize('language', ['en', 'eng', 'English', 'en-GB'])
def test_english_is_counted_as_it_was(language):
    s = rates("Please don't press 2, um", 'please do not press two', language)
    assert s['wer']==0 and s['wer_plain']>0
    assert rates('hmm', 'hmm', language)['cer']==0

MARKS = [('मैं हिन्दी हूँ', 'मै हन्द हू'), ('ดีมาก', 'ดมาก'), ('مُحَمَّد', 'محمد'), ('שָׁלוֹם', 'שלום'), ('mùa hè', 'mua he'),
         ('Élan', 'Elan'), ('தமிழ்', 'தமழ'),
         ('können', 'konnen')]

@pytest.mark.parametrize('right,wrong', MARKS)
def test_no_letter_and_no_mark_is_lost(right, wrong):
    import unicodedata
    assert rates(right, wrong)['cer']>0 and rates(right, unicodedata.normalize('NFD', right.upper()))['cer']==0

def test_case_follows_the_language():
    assert rates('DİYARBAKIR', 'diyarbakır', 'tr')['cer']==0 and rates('DİYARBAKIR', 'diyarbakir', 'tr')['cer']>0
    assert rates('INDIA', 'india', 'de')['cer']==0 and rates('ΟΔΟΣ', 'οδος')['cer']==0

def test_a_sentence_without_spaces_is_no_word():
    for target,prediction,spaced in (('今天天气很好', '今天天气好', '今天 天气 很 好'), ('กินข้าว', 'กินขาว', 'กิน ข้าว'), ('こんにちは。', 'こんにちわ', 'こん にちは')):
        s = rates(target, prediction)
        assert 0<s['wer']<.5 and s['cer']<.5 and rates(target, spaced)['cer']==rates(target, spaced)['wer']==0
    assert rates('我用Python写', '我用Python写')['wer']==0 and rates('한국어 문장', '한국어문장')['wer']==1
    assert all('each character counts as a word, read cer' in speech_note(language=o) for o in ('zh','ja','th','yue')) and 'read cer' not in speech_note(language='ko')

def test_every_score_of_a_run_is_of_its_language(toy, tmp_path):
    toy['checkpoint'] = str(small_whisper(tmp_path/'several', languages=('en','zh','de')))
    rows = pd.read_csv(toy['source']).assign(audio=lambda d: [str(toy['source'].parent/o) for o in d.audio], text=lambda d: ['um '+o for o in d.text])
    toy['source'] = rows
    learn = sft_learner(data(toy, language='de'))
    assert spoken_language(learn.spec)=='de'
    learn.fit_head(1, 1e-3)
    ev = evaluate(learn)
    assert ev.score_options==dict(language='de') and 'language de' in ev.score_note and ev.report().attrs['scores']==ev.score_note
    said = ev.rows.assign(prediction=[o.removeprefix('um ') for o in ev.rows.target])
    kept = type(ev)(said, ev.task, spec=learn.spec)
    n = sum(len(o.split()) for o in ev.rows.target)
    assert kept.metrics['wer']==kept.scores()(np.ones((1,len(ev))))['wer'][0]==len(ev)/n
    metric = learn.metrics[0].store
    assert metric.score(said)['wer']==len(ev)/n
    model = load_predictor(save_predictor(learn, tmp_path/'saved'))
    assert 'language de' in model.info['scores'] and spoken_language(model.spec)=='de' and evaluate(model, rows).score_options==dict(language='de')
    assert load_evaluation(kept.save(tmp_path/'ev.parquet')).metrics==kept.metrics and load_evaluation(tmp_path/'ev.parquet', language='en').metrics['wer']==0
    assert 'language de' in (tmp_path/'saved'/'README.md').read_text()
    assert 'language de' in ev.to_html(tmp_path/'page.html').read_text()

def test_tables_and_comparisons_name_their_language(capsys):
    table = pd.DataFrame(dict(audio=['a','b'], target=['um acht','ja'], prediction=['acht','ja']))
    found = {o:evaluate_table(table, language=o) for o in (None,'de','en')}
    assert [o.metrics['wer'] for o in found.values()]==[1/3,1/3,0.]
    assert 'none is named' in found[None].score_note and found['en'].score_options==dict(language='en')
    assert found['de'].compare(found['en']).query("metric=='wer'").difference.item()==0 and 'Both evaluations are compared by the score settings of this one' in capsys.readouterr().err
    with pytest.raises(DataError, match="language must be a code .*got 'Germam'"): evaluate_table(table, language='Germam')
    with pytest.raises(DataError, match="the scores of task 'text' do not depend on a language"): evaluate_table(table.drop(columns='audio'), 'text', language='de')

def test_the_language_of_a_checkpoint_by_its_name(toy, ctc, tmp_path):
    assert spoken_language(data(toy).sft) is None
    toy['checkpoint'] = str(small_whisper(tmp_path/'whisper-toy.en'))
    learn = sft_learner(data(toy))
    assert spoken_language(learn.spec)=='en' and "Whisper's English" in evaluate(learn).score_note
    assert "Whisper's English" in load_predictor(save_predictor(learn, tmp_path/'saved')).info['scores']
    spec = data(toy, checkpoint=ctc, language='fr').sft
    assert spoken_language(spec)=='fr' and speech_coder(spec).language is None
    with pytest.raises(DataError, match="language must be a code .*got 'speech'"): data(toy, checkpoint=ctc, language='speech')

def test_the_text_of_a_row_has_words_in_any_script():
    for o in ('हूँ', 'ดี', '今天', 'שָׁ', '100 %'): assert normalized(o)
    for o in ('[beep]', '…', '♪♪', '\u200b'): assert not normalized(o)

@pytest.mark.parametrize('language', ['de','zh',None])
def test_plain_transformers_writes_the_same_in_the_language(toy, tmp_path, language):
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor
    several = small_whisper(tmp_path/'several', languages=('en','zh','de'))
    how = json.loads((several/'generation_config.json').read_text())
    assert not how.get('_from_model_config') and how['forced_decoder_ids'][0]==[1,None] and set(how['task_to_id'])=={'transcribe','translate'} and how['max_length']==64
    learn = sft_learner(data(toy, window='whole', **(dict(checkpoint=str(several), language=language) if language else {})))
    learn.fit_head(10, 3e-3)
    ev,folder = evaluate(learn),save_predictor(learn, tmp_path/'saved', metrics={})
    how = json.loads((folder/'generation_config.json').read_text())
    assert (how.get('language'), how.get('task'))==((language, 'transcribe') if language else (None, None)) and not how.get('_from_model_config')
    net,processor,seen = AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval(),AutoProcessor.from_pretrained(folder),[]
    net.model.decoder.register_forward_pre_hook(lambda m, a, kw: seen.append(kw['input_ids'].tolist()), with_kwargs=True)
    x = processor([read_sound(o) for o in ev.rows.audio], sampling_rate=16000, return_tensors='pt')
    said = processor.batch_decode(net.generate(x.input_features, max_new_tokens=40), skip_special_tokens=True)
    assert seen[0][0]==speech_coder(learn.spec).prompt
    assert all(p.startswith(o.strip().rstrip('\ufffd')) for o,p in zip(said, ev.rows.prediction))

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
    for kw,error,words in ((dict(label_smoothing=.1), FitError, 'the CTC loss has no label smoothing'), (dict(loss='focal'), FitError, 'must be None'),
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
    from sft_nb.tasks import demo_data
    from sft_nb.cli import main
    demo = dict(source=toy['source'], load=dict(checkpoint=toy['checkpoint'], valid=.25), fine_tune=dict(freeze_epochs=1), untuned=True, keep_best=False)
    monkeypatch.setitem(demo_data.DEMOS, 'speech', lambda folder: demo)
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
