"Translation over architectures made on the spot, with real tokenizers: tokens, groups, cache, writing, saving; odd and bad pairs; error messages"
import io, json, subprocess, sys
import numpy as np, pandas as pd, pytest, sacrebleu, sentencepiece, torch, transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from sft_nb.core.basics import CheckpointError, DataError, FitError, HeadError
from sft_nb.core.metrics import translation_scores, translation_signature
from sft_nb.data.task import get_task
from sft_nb.data.problems import BadRows
from sft_nb.data.load import load_data
from sft_nb.data.translation import odd_pairs, pair_coder
from sft_nb.models.seq2seq import shifted, taught
from sft_nb.training.learner import sft_learner
from sft_nb.training.cache import frozen_cache
from sft_nb.training.callbacks import KeepBest
from sft_nb.evaluation.results import Evaluation
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.tasks.small_nets import small_marian
import sft_nb.core.metrics as text_scores

PAIRS = [(f'the {a} {n}', f'{m} {b}') for a,b in (('red','rouge'),('small','petite'),('old','ancienne'),('white','blanche'))
         for n,m in (('house','la maison'),('table','la table'),('door','la porte'),('car','la voiture'))]
TEXTS = [t for o in PAIRS for t in o]
BART = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
            max_position_embeddings=64, bos_token_id=0, pad_token_id=1, eos_token_id=2)
T5 = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)

def saved(out, kind, config, tokenizer):
    torch.manual_seed(1)
    getattr(hf, kind)(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out

def unigram(*special):
    tok = Tokenizer(models.Unigram())
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=90, special_tokens=list(special), unk_token='<unk>', show_progress=False))
    return [tuple(o) for o in json.loads(tok.to_str())['model']['vocab']]

def bpe(tok, size, *special, **kw):
    tok.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False, **kw))
    m = json.loads(tok.to_str())['model']
    return dict(vocab=m['vocab'], merges=[tuple(o) for o in m['merges']])

def marian(out): return small_marian(TEXTS, out, size=80, width=32, layers=2)

def marian_many(out):
    "A vocabulary with codes of target languages, as OPUS-MT's models for several have it"
    small_marian(TEXTS, out, size=80, width=32, layers=2)
    vocab = json.loads((out/'vocab.json').read_text())
    size = len(vocab)
    (out/'vocab.json').write_text(json.dumps({**vocab, '>>fra<<':size, '>>ita<<':size+1}))
    net = hf.MarianMTModel.from_pretrained(out)
    net.resize_token_embeddings(size+2)
    net.save_pretrained(out)
    return out

def marian_two(out):
    "A vocabulary and a tokenizer for each side"
    def side(texts, name):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, vocab_size=70, hard_vocab_limit=False, bos_id=-1, pad_id=-1, eos_id=0,
                                                 unk_id=1, minloglevel=2, num_threads=1)
        p = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        (out/f'{name}.spm').write_bytes(model.getvalue())
        return [p.id_to_piece(i) for i in range(p.get_piece_size())]
    out.mkdir(parents=True)
    both = side([s for s,_ in PAIRS], 'source'),side([t for _,t in PAIRS], 'target')
    n = max(map(len, both))
    for name,pieces in zip(('vocab','target_vocab'), both):
        (out/f'{name}.json').write_text(json.dumps({o:i for i,o in enumerate([*pieces, *(f'<unused{i}>' for i in range(n-len(pieces))), '<pad>'])}))
    tok = hf.MarianTokenizer(*(str(out/o) for o in ('source.spm','target.spm','vocab.json','target_vocab.json')), separate_vocabs=True)
    more = {**BART, 'pad_token_id':n, 'bos_token_id':None, 'eos_token_id':0}
    return saved(out, 'MarianMTModel', hf.MarianConfig(vocab_size=n+1, decoder_vocab_size=n+1, share_encoder_decoder_embeddings=False, tie_word_embeddings=False,
                                                      decoder_start_token_id=n, forced_eos_token_id=None, **more), tok)

def t5(out, kind='T5ForConditionalGeneration', config=hf.T5Config, **kw):
    tok = hf.T5Tokenizer(vocab=unigram('<pad>','</s>','<unk>'), extra_ids=4)
    return saved(out, kind, config(vocab_size=len(tok), **T5, **kw), tok)

def mt5(out): return t5(out, 'MT5ForConditionalGeneration', hf.MT5Config, feed_forward_proj='gated-gelu', tie_word_embeddings=False)

def byt5(out):
    return saved(out, 'T5ForConditionalGeneration', hf.T5Config(vocab_size=384, feed_forward_proj='gated-gelu', tie_word_embeddings=False, **T5), hf.ByT5Tokenizer())

def bart(out):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer,tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False),decoders.ByteLevel()
    tok = hf.BartTokenizer(**bpe(tok, 320, '<s>', '<pad>', '</s>', '<unk>', '<mask>', initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return saved(out, 'BartForConditionalGeneration', hf.BartConfig(vocab_size=len(tok), decoder_start_token_id=2, forced_eos_token_id=2, **BART), tok)

def mbart(out, tokenizer=hf.MBartTokenizer, **kw):
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES as old
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as new
    codes = old if tokenizer is hf.MBartTokenizer else new
    tok = tokenizer(vocab=[*unigram('<s>','<pad>','</s>','<unk>'), *((o, 0.) for o in codes), ('<mask>', 0.)])
    return saved(out, 'MBartForConditionalGeneration', hf.MBartConfig(vocab_size=len(tok), **BART, **kw), tok)

def mbart50(out): return mbart(out, hf.MBart50Tokenizer, decoder_start_token_id=2)

def m2m100(out):
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as codes
    out.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_prefix=str(out/'m'), vocab_size=80, hard_vocab_limit=False, bos_id=0, pad_id=1, eos_id=2,
                                             unk_id=3, minloglevel=2, num_threads=1)
    p = sentencepiece.SentencePieceProcessor(model_file=str(out/'m.model'))
    (out/'vocab.json').write_text(json.dumps({p.id_to_piece(i):i for i in range(p.get_piece_size())}))
    (out/'m.model').rename(out/'sentencepiece.bpe.model')
    tok = hf.M2M100Tokenizer(str(out/'vocab.json'), str(out/'sentencepiece.bpe.model'), additional_special_tokens=[f'__{o}__' for o in codes['m2m100']])
    size = p.get_piece_size()+len(codes['m2m100'])+8
    return saved(out, 'M2M100ForConditionalGeneration', hf.M2M100Config(vocab_size=size, decoder_start_token_id=2, **BART), tok)

def nllb(out):
    tok = Tokenizer(models.BPE(unk_token='<unk>'))
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok = hf.NllbTokenizer(**bpe(tok, 100, '<s>', '<pad>', '</s>', '<unk>'))
    return saved(out, 'M2M100ForConditionalGeneration', hf.M2M100Config(vocab_size=len(tok), decoder_start_token_id=2, **BART), tok)

FAMILIES = dict(marian=marian, marian_many=marian_many, marian_two=marian_two, t5=t5, mt5=mt5, byt5=byt5, bart=bart, mbart=mbart, mbart50=mbart50, m2m100=m2m100, nllb=nllb)
LANGS = dict(mbart=('de_DE','fr_XX'), mbart50=('de_DE','fr_XX'), m2m100=('de','fr'), nllb=('deu_Latn','fra_Latn'))
CODES = {k:dict(source_lang=a, target_lang=b) for k,(a,b) in LANGS.items()} | dict(marian_many=dict(target_lang='fra'))
FIRST,LAST = ('mbart50','m2m100','nllb'),('mbart',)

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Folders of the families, each made once"
    made = {}
    def get(kind):
        if kind not in made: made[kind] = FAMILIES[kind](tmp_path_factory.mktemp('families')/kind)
        return made[kind]
    return get

@pytest.fixture(params=FAMILIES)
def kind(request): return request.param

@pytest.fixture
def data(folders, home, one_thread):
    def get(kind, rows=PAIRS, **kw):
        table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows, columns=['source','target'])
        return load_data('translation', table, checkpoint=str(folders(kind)), **{'valid':.25, **CODES.get(kind, {}), **kw})
    return get

@pytest.fixture
def learner(data):
    def get(kind, load=None, **kw):
        learn = sft_learner(data(kind, **(load or {})), **{'freeze':None, 'metrics':[], **kw})
        learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
        learn.logger = lambda *_: None
        for m in learn.model.modules():
            if isinstance(m, torch.nn.Dropout): m.p = 0.
            if isinstance(getattr(m, 'dropout', None), float): m.dropout = m.activation_dropout = 0.
        return learn
    return get

def bare(x): return {k:v for k,v in x.items() if k!='labels'}
def weights(model): return {k:v.detach().clone() for k,v in model.state_dict().items()}

def test_both_sides_are_tokenized_as_the_library_does_it(data, folders, kind):
    dls = data(kind)
    coder,(s,t) = pair_coder(dls.sft),LANGS.get(kind, (None,None))
    tok = hf.AutoTokenizer.from_pretrained(folders(kind), **(dict(src_lang=s, tgt_lang=t) if s else {}))
    source = ('>>fra<< ' if kind=='marian_many' else '')+PAIRS[0][0]
    assert list(coder.encode([PAIRS[0][0]])[0])==tok(source)['input_ids']
    assert coder.labels([PAIRS[0][1]])==[tok(text_target=PAIRS[0][1])['input_ids']]
    assert coder.say([coder.labels([PAIRS[0][1]])[0]+[-100,-100]])==[PAIRS[0][1]]

def test_language_token_stands_where_the_family_has_it(data, kind):
    coder = pair_coder(data(kind).sft)
    y,start = coder.labels(['la maison'])[0],coder.start()
    if kind in FIRST: assert y[0]==coder.language_token()==start['forced_bos_token_id'] and y[-1]==coder.tokenizer.eos_token_id
    elif kind in LAST: assert y[-1]==coder.language_token()==start['decoder_start_token_id'] and y[-2]==coder.tokenizer.eos_token_id
    else: assert coder.language_token() is None and start=={} and y[-1]==coder.tokenizer.eos_token_id

def test_padding_of_labels_is_left_out(learner, kind):
    learn = learner(kind)
    x,y = learn.dls.valid.one_batch()
    longer = torch.cat([y, torch.full((len(y),3), -100)], 1)
    learn.model.eval() # some families drop whole layers at random in training
    with torch.no_grad(): a,b = learn.loss_func(learn.model({**x, 'labels':y}), y),learn.loss_func(learn.model({**x, 'labels':longer}), longer)
    assert torch.allclose(a, b, atol=1e-5)

def test_decoder_is_shifted_as_in_the_library(learner, kind):
    learn = learner(kind)
    x,y = learn.dls.valid.one_batch()
    learn.model.eval() # some families drop whole layers at random in training
    with torch.no_grad(): own,ours = learn.model.net(**bare(x), labels=y),learn.model(x)
    assert torch.allclose(own.logits, ours, atol=1e-5) and torch.allclose(own.loss, learn.loss_func(ours, y), atol=1e-5)
    if kind in LAST: assert (shifted(learn.model.net, y)[:,0]==pair_coder(learn.spec).language_token()).all()

def test_groups(learner, kind):
    m = learner(kind).model
    held = [n for ns in m.groups.values() for n in ns]
    assert sorted(held)==sorted(n for n,_ in m.named_parameters()) and len(set(held))==len(held)
    names = list(m.groups)
    assert names[0]=='embeddings' and names[-1]=='head' and len(names)==6
    assert [n.split('.')[0] for n in names[1:-1]]==['encoder','encoder','decoder','decoder'] and m.above_body==names[3]
    untied = kind=='marian_two'
    assert ('net.lm_head.weight' in m.groups['head'])==untied
    if not untied: assert m.net.get_output_embeddings().weight is m.net.get_input_embeddings().weight
    assert not any('sinusoid' in n or kind.startswith('marian') and 'embed_positions' in n for n in held)

def test_every_parameter_gets_a_gradient(learner, kind):
    learn = learner(kind)
    x,y = learn.dls.valid.one_batch()
    for m in learn.model.modules():
        if hasattr(m, 'layerdrop'): m.layerdrop = 0. # else some random states leave a layer out
    learn.loss_func(learn.model.train()(x), y).backward()
    assert [n for n,p in learn.model.named_parameters() if p.grad is None]==[]

@pytest.mark.parametrize('kind', ['marian', 't5', 'bart', 'nllb'])
def test_cached_encoder_equals_live(learner, kind):
    def run(cached):
        learn = learner(kind, freeze='body')
        if cached:
            with frozen_cache(learn): learn.fit(2, 1e-3)
            assert set(learn.cached_groups)==set(list(learn.model.groups)[:3])
        else: learn.fit(2, 1e-3)
        return weights(learn.model),np.array(learn.recorder.values, dtype=float)
    (a,va),(b,vb) = run(False),run(True)
    assert max((a[k].double()-b[k].double()).abs().max().item() for k in a)<1e-5 and np.allclose(va, vb, atol=1e-5)

@pytest.mark.parametrize('beams', [1, 3])
def test_writing_is_the_librarys_own(learner, kind, beams):
    learn = learner(kind, dict(num_beams=beams))
    m,x = learn.model.eval(),bare(learn.dls.valid.one_batch()[0])
    own = m.net.generate(**x)
    said = m(x)
    assert torch.equal(said.tokens.masked_fill(said.tokens==-100, m.net.generation_config.pad_token_id), own[:,1:])
    assert own.shape[1]<=learn.spec.preprocess['max_target_length']+1 and m.net.generation_config.num_beams==beams
    with torch.no_grad(): logp = m.net(**x, decoder_input_ids=own[:,:-1]).logits.log_softmax(-1).gather(-1, own[:,1:,None])[...,0]
    on = said.tokens!=-100
    if kind in FIRST: on[:,0] = False
    want = ((logp*on).sum(1)/on.sum(1).clamp(min=1)).exp()
    assert torch.allclose(said.probability, want, atol=1e-5)
    first = {'mbart':own[0,0], **{k:own[0,1] for k in FIRST}}.get(kind)
    if first is not None: assert first==pair_coder(learn.spec).language_token()

def test_learns_saves_and_opens_in_plain_transformers(learner, kind, tmp_path):
    learn = learner(kind)
    was = evaluate(learn, 'train').metrics['chrf']
    learn.fit(25, 3e-3)
    ev = evaluate(learn, 'train')
    assert ev.metrics['chrf']>was+5
    save_predictor(learn, tmp_path/'saved', metrics={})
    sources,want = list(ev.rows.source),ev.rows.prediction.tolist()
    assert load_predictor(tmp_path/'saved').predict(sources).prediction.tolist()==want
    net,tok = hf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path/'saved'),hf.AutoTokenizer.from_pretrained(tmp_path/'saved')
    asked = [('>>fra<< ' if kind=='marian_many' else '')+o for o in sources]
    said = tok.batch_decode(net.generate(**tok(asked, return_tensors='pt', padding=True)), skip_special_tokens=True)
    assert [o.strip() for o in said]==want

def test_tables_of_positions_are_never_trained(learner):
    learn = learner('marian')
    table = learn.model.net.model.encoder.embed_positions
    was = table.weight.clone()
    learn.fit(2, 1e-2)
    assert torch.equal(was, table.weight) and torch.equal(was, table.create_weight())

def test_a_checkpoint_that_says_how_to_write_is_saved_again(folders, data, tmp_path):
    net = hf.AutoModelForSeq2SeqLM.from_pretrained(folders('bart'))
    net.generation_config.update(num_beams=4, early_stopping=True, length_penalty=2., no_repeat_ngram_size=3, min_length=10, max_length=60)
    net.save_pretrained(tmp_path/'summary')
    hf.AutoTokenizer.from_pretrained(folders('bart')).save_pretrained(tmp_path/'summary')
    learn = sft_learner(load_data('translation', pd.DataFrame(PAIRS, columns=['source','target']), valid=.25, checkpoint=str(tmp_path/'summary')))
    save_predictor(learn, tmp_path/'saved', metrics={})
    config = hf.GenerationConfig.from_pretrained(tmp_path/'saved')
    assert (config.num_beams,config.min_length,config.max_length,config.max_new_tokens)==(1,0,None,learn.spec.preprocess['max_target_length'])

def test_the_order_of_rows_and_the_size_of_batches_change_nothing(learner):
    learn = learner('marian', dict(rows=[*PAIRS, ('the red house and the small table and the old door', 'la maison rouge'), ('car', 'la voiture')]))
    learn.fit(15, 3e-3)
    ev = evaluate(learn, 'train')
    assert ev.rows.source.tolist()==learn.spec.rows.source[learn.spec.rows.split=='train'].tolist()
    for size in (1, 3): assert evaluate(learn, 'train', batch_size=size).rows.prediction.tolist()==ev.rows.prediction.tolist()
    loader = learn.spec.task.item_loader
    lengths = []
    def spy(spec, rows, batch_size): lengths.extend(rows.source.str.len()); return loader(spec, rows, batch_size)
    object.__setattr__(learn.spec.task, 'item_loader', spy)
    try: evaluate(learn, 'train')
    finally: object.__setattr__(learn.spec.task, 'item_loader', loader)
    assert lengths==sorted(lengths, reverse=True)

def test_training_is_judged_by_texts_and_the_best_is_kept(learner):
    learn = learner('marian', metrics=None, freeze='body')
    keep = KeepBest()
    learn.fine_tune(8, base_lr=6e-3, decay=.9, freeze_epochs=2, cbs=keep)
    chrf = [h['chrf'] for h in learn.history if h['phase']=='finetune']
    assert keep.watched=='chrf' and set(learn.history[0])>={'chrf','bleu','valid_loss'}
    assert evaluate(learn).metrics['chrf']==pytest.approx(max(chrf), abs=1e-3)
    head = [h for h in learn.history if h['phase']=='head']
    assert len(head)==2 and all(np.isfinite(h['chrf']) for h in head)

def test_fastai_shows_batches_and_results(learner, displayed):
    learn = learner('marian')
    learn.dls.valid.show_batch(max_n=2)
    learn.show_results(max_n=2)
    shown = displayed()
    assert 'source' in shown and 'taught' in shown and any(s in shown for s,_ in PAIRS)

def test_scores_are_sacrebleus_own():
    rows = pd.DataFrame(dict(target=['Ouvrir %s dans {name}','Fermer la fenêtre'], prediction=['Ouvrir dans {name}','Fermer la fenêtre']))
    s = translation_scores(rows)
    assert s['bleu']==pytest.approx(sacrebleu.corpus_bleu(list(rows.prediction), [list(rows.target)]).score)
    assert s['chrf']==pytest.approx(sacrebleu.corpus_chrf(list(rows.prediction), [list(rows.target)]).score)
    assert s['exact']==.5 and s['placeholders']==0 and s['length_ratio']==pytest.approx(35/38)
    note = translation_signature()
    assert f'version:{sacrebleu.__version__}' in note and 'BLEU nrefs:1|' in note and 'chrF nrefs:1|' in note

def test_intervals_and_comparisons_count_each_row_once(monkeypatch):
    said = [t if i%3 else t[:len(t)//2] for i,(_,t) in enumerate(PAIRS)]
    def ev(said): return Evaluation(pd.DataFrame(dict(item=[s for s,_ in PAIRS], target=[t for _,t in PAIRS], prediction=said, correct=False)), get_task('translation'))
    a,b,n = ev(said),ev([t[::-1] for _,t in PAIRS]),len(PAIRS)
    weights = np.random.default_rng(0).multinomial(n, [1/n]*n, 20)
    found = a.scores()(weights)
    for i,w in enumerate(weights):
        again = translation_scores(a.rows.iloc[np.repeat(np.arange(n), w)])
        assert {k:v[i] for k,v in found.items()}==pytest.approx(again)
    counted = []
    monkeypatch.setattr(text_scores, '_kept', lambda t, p: counted.append(t))
    report,against = a.report(),a.compare(b).set_index('metric')
    assert len(counted)==3*n and list(report.metric)==['bleu','chrf','exact','length_ratio','placeholders']
    assert against.verdict['chrf']=='better' and against.low['chrf']<against.difference['chrf']<against.high['chrf']

@pytest.mark.parametrize('target,prediction,kept', [
    ('%s of %d', '%d de %s', True), ('%s', 's', False), ('%(n)d rows', '%(n)d lignes', True), ('{name}', '{nom}', False), ('$HOME', '$HOME', True),
    ('100 % sure', 'x', None), ('costs $5', 'x', None), ('%1$s: %2$s', '%2$s %1$s', True), ('%s %s', '%s', False), ('%.2f', '%.2f', True), ('{}', '{} {}', False)])
def test_placeholders(target, prediction, kept): assert text_scores._kept(target, prediction) is kept

@pytest.mark.parametrize('side', ['source', 'target'])
@pytest.mark.parametrize('cell', ['', '   ', None])
def test_an_empty_side_is_bad(data, side, cell):
    rows = pd.DataFrame(PAIRS, columns=['source','target'])
    rows.loc[5, side] = cell
    with pytest.raises(BadRows) as e: data('marian', rows)
    assert 'row 5' in str(e.value)
    assert len(data('marian', rows, bad='skip').sft.rows)==len(PAIRS)-1

def test_odd_pairs_are_reported_and_stay(data, capsys):
    dls = data('marian', [*PAIRS, ('the red car','the red car'), ('the old door','la'), ('car','la voiture ancienne rouge et petite')])
    assert "1 with a target equal to the source, 2 with lengths that do not fit, of 19" in capsys.readouterr().err
    odd = odd_pairs(dls.sft.rows)
    assert len(dls.sft.rows)==19 and odd.remark.tolist()==['target equals source','12 characters against 2','3 characters against 35']
    data('marian')
    assert 'Odd' not in capsys.readouterr().err

def test_what_is_cut_is_said(data, capsys):
    dls = data('marian', max_length=6, max_target_length=5)
    said = capsys.readouterr().err
    assert 'of 16 sources after 6 tokens' in said and 'of 16 targets after 5 tokens' in said
    x,y = dls.valid.one_batch()
    assert x['input_ids'].shape[1]==6 and y.shape[1]==5 and 'short' not in said
    assert data('marian', max_length=6).sft.preprocess['max_target_length']>6

@pytest.mark.parametrize('load,words', [
    (dict(kind='nllb', source_lang=None), 'is for 202 languages: choose one by source_lang=CODE'),
    (dict(kind='nllb', target_lang=None), 'choose one by target_lang=CODE (in a shell --option target_lang=CODE). Codes: '),
    (dict(kind='nllb', target_lang='fr'), "target_lang='fr' is not a language of"),
    (dict(kind='nllb', target_lang='fra_Latin'), "Did you mean 'fra_Latn'"),
    (dict(kind='m2m100', source_lang='english'), "source_lang='english' is not a language of"),
    (dict(kind='mbart', source_lang='en'), "source_lang='en' is not a language of"),
    (dict(kind='marian_many', target_lang=None), 'is for 2 languages: choose one by target_lang=CODE'),
    (dict(kind='marian_many', target_lang='deu'), "target_lang='deu' is not a language of"),
    (dict(kind='marian', target_lang='fr'), "target_lang='fr': "), (dict(kind='t5', source_lang='en'), 'takes no code for its source language'),
    (dict(kind='marian', num_beams=0), 'num_beams must be a whole number from 1 up, got 0'), (dict(kind='marian', num_beams='4'), "from 1 up, got '4'"),
    (dict(kind='marian', max_target_length=1), 'max_target_length must be a whole number of tokens from 2 to 128, got 1'),
    (dict(kind='marian', max_target_length=500), 'from 2 to 128'), (dict(kind='marian', max_length=2), 'max_length must be'),
    (dict(kind='marian', beams=2), "no option 'beams' for task 'translation'")], ids=str)
def test_what_cannot_be_asked_is_refused(data, load, words):
    load = dict(load)
    with pytest.raises(DataError) as e: data(load.pop('kind'), **load)
    assert words in str(e.value)

def test_what_no_model_can_be_made_of_is_refused(data, learner, folders, tmp_path):
    with pytest.raises(HeadError, match='keeps its own output layer'): learner('marian', head=[64])
    with pytest.raises(FitError, match="loss must be None .*got 'focal'"): learner('marian', loss='focal')
    with pytest.raises(CheckpointError, match='has another tokenizer than the checkpoint that the data were loaded for'): sft_learner(data('marian'), checkpoint=str(folders('t5')))
    hf.AutoModelForSeq2SeqLM.from_pretrained(folders('bart')).save_pretrained(tmp_path/'mixed')
    hf.ByT5Tokenizer().save_pretrained(tmp_path/'mixed')
    with pytest.raises(CheckpointError, match='its tokenizer has 384 tokens, its network'):
        sft_learner(load_data('translation', pd.DataFrame(PAIRS, columns=['source','target']), valid=.25, checkpoint=str(tmp_path/'mixed')))
    bert = hf.BertModel(hf.BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    bert.save_pretrained(tmp_path/'bert')
    with pytest.raises(CheckpointError, match="does not fit task 'translation'"): load_data('translation', pd.DataFrame(PAIRS, columns=['source','target']), checkpoint=str(tmp_path/'bert'))

def test_a_prefix_is_read_and_kept(learner, tmp_path):
    learn = learner('t5', dict(prefix='translate '))
    x,_ = learn.dls.valid.one_batch()
    coder = pair_coder(learn.spec)
    assert coder.decode(x['input_ids'][0]).startswith('translate') and coder.shown(x, 1)[0] in [s for s,_ in PAIRS]
    save_predictor(learn, tmp_path/'saved', metrics={})
    assert load_predictor(tmp_path/'saved').spec.preprocess['prefix']=='translate '

def test_dropout_reaches_the_network(learner):
    assert learner('marian', dropout=.3).model.net.config.dropout==.3
    assert learner('t5', dropout=.3).model.net.config.dropout_rate==.3
