"The text task over architectures made on the spot: groups, pieces, cache, saving; what is wrong with a text; loaders"
import json, os, subprocess, sys
import numpy as np, pandas as pd, pytest, torch, transformers
from safetensors.torch import load_file, save_file
from torch import nn
from sft_nb.core.basics import CheckpointError, DataError, FolderError, HeadError
from sft_nb.data.task import get_task
from sft_nb.data.problems import BadRows
from sft_nb.data.load import load_data
from sft_nb.data.texts import text_coder, TextCoder, truncation
from sft_nb.models.text_model import pool_tokens
from sft_nb.training.learner import sft_learner
from sft_nb.training.cache import activations, frozen_cache
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.tasks.toys import toy_texts
from sft_nb.tasks.demo_data import make_demo
from sft_nb.cli import main

FAMILIES = {
    'bert': dict(max_position_embeddings=64), 'roberta': dict(max_position_embeddings=66), 'xlm-roberta': dict(max_position_embeddings=66),
    'camembert': dict(max_position_embeddings=66), 'electra': dict(embedding_size=16, max_position_embeddings=64), 'mpnet': dict(max_position_embeddings=66),
    'distilbert': dict(dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=64),
    'deberta-v2': dict(relative_attention=True, position_buckets=8, norm_rel_ebd='layer_norm', share_att_key=True, pos_att_type=['p2c','c2p'],
                       conv_kernel_size=3, max_position_embeddings=64, type_vocab_size=0, position_biased_input=False),
    'modernbert': dict(max_position_embeddings=64, local_attention=8, global_attn_every_n_layers=2,
                       cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3),
    'gpt2': dict(n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=3, eos_token_id=3)}
OTHERS = {'albert': dict(embedding_size=16, max_position_embeddings=64),
          'llama': dict(max_position_embeddings=64, num_key_value_heads=4, bos_token_id=2, eos_token_id=3),
          'bart': dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                       encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3)}
COMMON = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)

def checkpoint(folder, kind, **more):
    "A folder with a tiny network of a kind and the tokenizer of the toy"
    toy = toy_texts(folder)
    tok = transformers.AutoTokenizer.from_pretrained(toy['checkpoint'])
    if kind in ('gpt2','llama'):
        tok = transformers.PreTrainedTokenizerFast(tokenizer_object=plain(tok), unk_token='[UNK]', eos_token='[SEP]', model_max_length=64)
    settings = {**COMMON, 'vocab_size':200, 'pad_token_id':0, **FAMILIES.get(kind, {}), **OTHERS.get(kind, {}), **more}
    if kind in ('gpt2','llama'): settings['pad_token_id'] = None
    if kind in ('distilbert','gpt2','bart'): settings = {k:v for k,v in settings.items() if k not in COMMON}
    torch.manual_seed(1)
    out = folder/kind
    transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **settings)).save_pretrained(out)
    tok.save_pretrained(out)
    return toy, out

def plain(tok):
    from tokenizers import Tokenizer
    data = json.loads(tok.backend_tokenizer.to_str())
    return Tokenizer.from_str(json.dumps({**data, 'post_processor':None}))

def learner(folder, kind='bert', load=None, more=None, **kw):
    toy, path = checkpoint(folder, kind, **(more or {}))
    dls = load_data('text', toy['source'], checkpoint=str(path), **{**toy['load'], **(load or {})})
    learn = sft_learner(dls, **{'freeze':None, **kw})
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
    learn.logger = lambda *_: None
    return learn

def still(model):
    for m in model.modules():
        for k in ('p','dropout_prob','dropout','attention_dropout'):
            if isinstance(getattr(m, k, None), float): setattr(m, k, 0.)

def batch(learn): return learn.dls.valid.one_batch()[0]

HEADS = [None, 'hf']

def kinds(heads):
    "Each family with each head; an encoder–decoder has the library's head alone"
    return [pytest.param(k, h, id=f'{k}-{h}') for k in (*FAMILIES, *OTHERS) for h in heads if k!='bart' or h=='hf']

@pytest.mark.parametrize('kind,head', kinds(HEADS))
def test_groups_hold_each_parameter_once_and_all_of_them_are_used(tmp_path, kind, head):
    learn = learner(tmp_path, kind, head=head)
    m = learn.model
    held = [n for ns in m.groups.values() for n in ns]
    assert sorted(held)==sorted(n for n,_ in m.named_parameters()) and len(set(held))==len(held)
    names = list(m.groups)
    assert names[0]=='embeddings' and names[-1]=='head'
    if kind in FAMILIES: assert len(names)==5
    learn.loss_func(m.train()(batch(learn)), learn.dls.valid.one_batch()[1]).backward()
    unused = [n for n,p in m.named_parameters() if p.grad is None]
    assert not unused

NAMES = dict(bert='encoder.layer.0', distilbert='transformer.layer.0', modernbert='layers.0', gpt2='h.0', llama='layers.0')

@pytest.mark.parametrize('head', HEADS, ids=str)
@pytest.mark.parametrize('kind', NAMES)
def test_groups_have_the_names_of_the_library(tmp_path, kind, head):
    assert NAMES[kind] in learner(tmp_path, kind, head=head).model.groups

@pytest.mark.parametrize('head', HEADS, ids=str)
@pytest.mark.parametrize('kind', FAMILIES)
def test_pieces_are_the_forward_pass(tmp_path, kind, head):
    m = learner(tmp_path, kind, head=head).model.eval()
    assert m.borders()==[1,2,3,4]
    coder = TextCoder(transformers.AutoTokenizer.from_pretrained(tmp_path/kind), 64)
    x = coder.batch(coder.encode(['fine warm day', 'dull sad evening by the old river bank', 'day', 'sour weary evening by the old river bank '*3]))
    with torch.no_grad():
        want = m(x)
        for b in m.borders():
            h = m.prefix(b, x)
            assert torch.allclose(m.suffix(b, h), want, atol=1e-5)
            if b<4: assert set(h)=={'hidden','mask',*(['taken'] if (kind,head)==('gpt2','hf') else [])} and h['hidden'].shape[:2]==h['mask'].shape
            else: assert h.shape==(4,32)
        alone = torch.cat([m(coder.batch([o])) for o in coder.encode(['fine warm day', 'dull sad evening by the old river bank'])])
    assert torch.allclose(alone, want[:2], atol=1e-5)

@pytest.mark.parametrize('kind', ['gpt2','llama'])
def test_a_text_that_ends_with_the_token_that_pads(tmp_path, kind, home):
    learn = learner(tmp_path, kind, head='hf', freeze=-1 if kind=='llama' else -2)
    m,coder = learn.model.eval(),text_coder(learn.spec)
    rows = pd.DataFrame(dict(text=['dull sad evening [SEP]', '[SEP]', 'day [SEP] [SEP] fine', 'fine']))
    x = coder.batch(coder.encode(list(rows.text)))
    assert (x['input_ids'][x['attention_mask']==1]==coder.pad_id).sum()==4
    with torch.no_grad():
        want = m.net(**x).logits
        assert torch.allclose(torch.cat([m(coder.batch([o])) for o in coder.encode(list(rows.text))]), want, atol=1e-5)
        for b in m.borders():
            assert torch.allclose(m.suffix(b, m.prefix(b, x)), want, atol=1e-5)
            assert torch.allclose(m.suffix(b, activations(learn, b, rows).batch([3,0,2,1])), want[[3,0,2,1]], atol=1e-5)

@pytest.mark.parametrize('kind', ['gpt2','llama'])
def test_a_config_that_names_another_padding_token(tmp_path, kind):
    _,path = checkpoint(tmp_path, kind)
    config = json.loads((path/'config.json').read_text())
    (path/'config.json').write_text(json.dumps(dict(config, pad_token_id=7)))
    learn = sft_learner(load_data('text', tmp_path/'moods.csv', valid=.25, checkpoint=str(path)), head='hf')
    m,coder = learn.model.eval(),text_coder(learn.spec)
    tokens = coder.encode(['day', 'dull sad evening by the old river bank'])
    with torch.no_grad(): assert torch.allclose(torch.cat([m(coder.batch([o])) for o in tokens]), m(coder.batch(tokens)), atol=1e-5)
    save_predictor(learn, tmp_path/'out', metrics={})
    net = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path/'out').eval()
    with torch.no_grad(): assert torch.allclose(net(**coder.batch(tokens)).logits, m(coder.batch(tokens)), atol=1e-5)

@pytest.mark.parametrize('kind,head,borders', [('albert',None,1), ('llama',None,1), ('albert','hf',0), ('llama','hf',0), ('bart','hf',0)])
def test_other_models_are_cut_at_the_pooled_vector_alone(tmp_path, kind, head, borders):
    m = learner(tmp_path, kind, head=head).model
    assert len(m.borders())==borders
    if borders: assert m.borders()==[len(m.groups)-1] and m.prefix(m.borders()[0], m.example[0]).ndim==2

def test_a_family_that_runs_otherwise_is_cut_at_the_pooled_vector(tmp_path, monkeypatch):
    from transformers.models.bert.modeling_bert import BertEncoder
    own = BertEncoder.forward
    def twice(self, h, *a, **kw):
        out = own(self, h, *a, **kw)
        return own(self, out.last_hidden_state, *a, **kw)
    monkeypatch.setattr(BertEncoder, 'forward', twice)
    assert learner(tmp_path, 'bert').model.borders()==[4]

@pytest.mark.parametrize('kind', FAMILIES)
@pytest.mark.parametrize('head', HEADS, ids=str)
def test_training_from_the_cache_is_live_training(tmp_path, kind, head, home, one_thread):
    states,losses = [],[]
    for i,cached in enumerate((True, False)):
        learn = learner(tmp_path/str(i), kind, head=head, freeze=-2, load=dict(batch_size=4))
        still(learn.model)
        if cached:
            with frozen_cache(learn): learn.fit(2, 1e-2)
            assert learn.cached_groups
        else: learn.fit(2, 1e-2)
        states.append(learn.model.state_dict())
        losses.append([o['train_loss'] for o in learn.history])
    assert np.allclose(*losses, atol=1e-5)
    assert max((states[0][k].double()-states[1][k].double()).abs().max().item() for k in states[0] if states[0][k].numel())<1e-5

def test_cached_rows_are_stored_without_padding(tmp_path, home):
    learn = learner(tmp_path, freeze=-2)
    rows = learn.spec.split('train')
    a = activations(learn, 2, rows)
    assert a.ragged and a.files['hidden'].shape==(rows.tokens.sum(), 32)

@pytest.mark.parametrize('kind', FAMILIES)
def test_frozen_layers_stand_still(tmp_path, kind):
    learn = learner(tmp_path, kind, freeze=-2)
    was = {k:v.clone() for k,v in learn.model.state_dict().items()}
    learn.fit(1, 1e-2)
    moved = {k for k,v in learn.model.state_dict().items() if not torch.equal(v, was[k])}
    top = {n for g in list(learn.model.groups)[-2:] for n in learn.model.groups[g]}
    assert moved and moved<=top
    learn.freeze()
    learn.model.train()
    assert not any(m.training for m in learn.model.net.modules())

def probabilities(model, ev): return model.predict_proba(list(ev.rows.text))[model.vocab].to_numpy()

@pytest.mark.parametrize('kind,head', kinds([None, 'hf', [8]]))
def test_saved_and_opened_by_us_and_by_transformers(tmp_path, kind, head):
    learn = learner(tmp_path, kind, head=head)
    learn.fit(1, 1e-3)
    save_predictor(learn, tmp_path/'out')
    ev = evaluate(learn)
    assert np.abs(probabilities(load_predictor(tmp_path/'out'), ev)-ev.probabilities).max()<1e-5
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path/'out')
    x = tok(list(ev.rows.text), padding=True, return_tensors='pt')
    x.pop('token_type_ids', None)
    m = learn.model.eval()
    with torch.no_grad():
        if head=='hf':
            net = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path/'out').eval()
            assert torch.allclose(net(**x).logits, m(dict(x)), atol=1e-5)
            assert net.config.id2label==dict(enumerate(learn.spec.vocab))
        else:
            net = transformers.AutoModel.from_pretrained(tmp_path/'out').eval()
            assert torch.allclose(net(**x).last_hidden_state, m.net(**x).last_hidden_state, atol=1e-5)
    assert (tmp_path/'out'/'head.safetensors').exists()==(head!='hf')

def test_folder_has_the_layout_of_sentence_transformers(tmp_path):
    learn = learner(tmp_path, load=dict(pooling='cls', max_length=20))
    save_predictor(learn, tmp_path/'out', metrics={})
    modules = json.loads((tmp_path/'out'/'modules.json').read_text())
    assert [o['path'] for o in modules]==['','1_Pooling']
    said = json.loads((tmp_path/'out'/'1_Pooling'/'config.json').read_text())
    assert said['word_embedding_dimension']==32 and [k for k,v in said.items() if v is True]==['pooling_mode_cls_token']
    assert json.loads((tmp_path/'out'/'sentence_bert_config.json').read_text())['max_seq_length']==20
    again = load_data('text', tmp_path/'moods.csv', checkpoint=str(tmp_path/'out'))
    assert again.sft.preprocess['pooling']=='cls' and again.sft.preprocess['max_length']==20

def test_weights_that_are_missing_or_too_many_are_refused(tmp_path):
    learn = learner(tmp_path)
    for i,change in enumerate((lambda s: s.pop('encoder.layer.1.output.dense.bias'), lambda s: s.update(more=torch.zeros(1)))):
        out = tmp_path/f'out{i}'
        out.mkdir()
        get_task('text').save(learn.model, learn.spec, out)
        state = load_file(out/'model.safetensors')
        change(state)
        save_file(state, out/'model.safetensors', metadata={'format':'pt'})
        with pytest.raises(FolderError, match=['missing keys.*encoder.layer.1.output.dense.bias','unexpected keys.*more'][i]):
            get_task('text').load(learn.spec, out)

def test_a_predictor_saved_again_predicts_the_same(tmp_path):
    learn = learner(tmp_path, head=[8])
    save_predictor(learn, tmp_path/'a')
    save_predictor(load_predictor(tmp_path/'a'), tmp_path/'b')
    texts = ['fine warm day','dull sad day']
    a,b = (load_predictor(tmp_path/o).predict_proba(texts) for o in 'ab')
    assert np.allclose(a[['bad','good']], b[['bad','good']])

def test_pooling():
    h,mask = torch.tensor([[[1.],[2.],[9.]],[[3.],[5.],[-1.]]]),torch.tensor([[1,1,0],[1,1,1]])
    want = dict(mean=[1.5,7/3], cls=[1,3], last=[2,-1], max=[2,5])
    for how,v in want.items(): assert torch.allclose(pool_tokens(h, mask, how)[:,0], torch.tensor(v, dtype=torch.float))

def test_pooling_follows_the_checkpoint_and_the_option(tmp_path):
    assert learner(tmp_path/'a').model.pooling=='mean'
    assert learner(tmp_path/'b', 'gpt2').model.pooling=='last'
    toy,path = checkpoint(tmp_path/'c', 'bert')
    (path/'1_Pooling').mkdir()
    (path/'1_Pooling'/'config.json').write_text('{"word_embedding_dimension":32,"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":false}')
    assert load_data('text', toy['source'], checkpoint=str(path)).sft.preprocess['pooling']=='cls'
    assert load_data('text', toy['source'], checkpoint=str(path), pooling='max').sft.preprocess['pooling']=='max'
    with pytest.raises(DataError, match="pooling='meen'. Did you mean 'mean'"): load_data('text', toy['source'], checkpoint=str(path), pooling='meen')

def test_gpt2_pads_with_its_end_token_on_the_right(tmp_path):
    learn = learner(tmp_path, 'gpt2', head='hf')
    x = batch(learn)
    pad = transformers.AutoTokenizer.from_pretrained(tmp_path/'gpt2').eos_token_id
    assert (x['input_ids'][x['attention_mask']==0]==pad).all() and learn.model.net.config.pad_token_id==pad
    assert (x['attention_mask'].diff(dim=1)<=0).all()

LONG = 'day '*100

def texts(extra, labels=('good',)):
    base = [(f'fine day {i}','good') for i in range(6)]+[(f'dull day {i}','bad') for i in range(6)]
    return pd.DataFrame(base+[(t,l) for t,l in zip(extra, labels*len(extra))], columns=['text','label'], dtype=object)

BAD = dict(empty=('', 'empty text'), blank=(' \t\n', 'empty text'), none=(None, 'empty text'), nan=(float('nan'), 'empty text'),
           number=(5, r'is a int \(5\), not a text'),
           fraction=(.5, r'is a float \(0.5\), not a text'), bytes=(b'day', 'is a bytes .*not a text'), words=(['a','b','c'], 'has 3 texts|not a text|pairs'),
           half=('a\ud800', r"holds '\\ud800' at character 1"))

@pytest.mark.parametrize('cell,said', BAD.values(), ids=BAD)
def test_bad_texts_are_named(tmp_path, cell, said):
    _,path = checkpoint(tmp_path, 'bert')
    with pytest.raises(BadRows, match=said) as e: load_data('text', texts([cell]), checkpoint=str(path))
    if not isinstance(cell, list):
        assert list(e.value.problems.row)==['row 12']
        assert len(load_data('text', texts([cell]), checkpoint=str(path), bad='skip').sft.rows)==12

def test_missing_label_is_named(tmp_path):
    _,path = checkpoint(tmp_path, 'bert')
    with pytest.raises(BadRows, match='row 12: empty label'): load_data('text', texts(['day'], (None,)), checkpoint=str(path))

def test_wrong_column_lists_the_columns(tmp_path):
    toy,path = checkpoint(tmp_path, 'bert')
    with pytest.raises(DataError, match="no column 'txt' for the text. Columns: text, label. Did you mean 'text'"):
        load_data('text', toy['source'], input='txt', checkpoint=str(path))
    with pytest.raises(DataError, match="no column 'second' for the text. Columns: text, label"):
        load_data('text', toy['source'], input='text,second', checkpoint=str(path))

def test_undecodable_files_name_byte_and_encoding(tmp_path):
    toy,path = checkpoint(tmp_path, 'bert')
    (tmp_path/'latin.csv').write_bytes('text,label\ncafé,good\n'.encode('cp1252'))
    with pytest.raises(DataError, match=r'not UTF-8: byte 0xe9 at offset 14, line 2.*cp1252'): load_data('text', tmp_path/'latin.csv', checkpoint=str(path))
    for i in range(8):
        f = tmp_path/'folder'/('good','bad')[i%2]/f'{i}.txt'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text(f'a day {i}')
    for i in (0,1): (tmp_path/'folder'/('good','bad')[i%2]/f'{i}.txt').write_bytes('né'.encode('cp1252'))
    with pytest.raises(BadRows, match='not UTF-8: byte 0xe9 at offset 1, line 1.*cp1252') as e: load_data('text', tmp_path/'folder', checkpoint=str(path))
    assert len(e.value.problems)==2
    assert len(load_data('text', tmp_path/'folder', checkpoint=str(path), bad='skip').sft.rows)==6

def test_encoding_reads_other_files(tmp_path, capsys):
    toy,path = checkpoint(tmp_path, 'bert')
    where = dict(checkpoint=str(path), valid=.5)
    lines = ['text,label', 'ein Käfer,tier', 'eine Tür,ding', 'ein Löwe,tier', 'eine Röhre,ding']
    (tmp_path/'old.csv').write_bytes('\r\n'.join(lines).encode('cp1252'))
    dls = load_data('text', tmp_path/'old.csv', encoding='cp1252', **where)
    assert set(dls.sft.rows.text)=={'ein Käfer','eine Tür','ein Löwe','eine Röhre'} and 'encoding' not in dls.sft.options
    assert 'old.csv: read as CP1252' in capsys.readouterr().err
    with pytest.raises(DataError, match="Pass encoding='cp1252', or save it as UTF-8"): load_data('text', tmp_path/'old.csv', **where)
    with pytest.raises(DataError, match="encoding='cp9999' is not the name of an encoding"): load_data('text', tmp_path/'old.csv', encoding='cp9999', **where)
    with pytest.raises(DataError, match='old.csv is not ascii: offset'): load_data('text', tmp_path/'old.csv', encoding='ascii', **where)
    for i,o in enumerate(lines[1:]):
        f = tmp_path/'texts'/o.split(',')[1]/f'{i}.txt'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_bytes(o.split(',')[0].encode('cp850'))
    assert set(load_data('text', tmp_path/'texts', encoding='cp850', **where).sft.rows.text)==set(dls.sft.rows.text)
    with pytest.raises(DataError, match="encoding='cp1252' is for text files, such as CSV, and a DataFrame is none"): load_data('text', texts([]), encoding='cp1252', **where)
    texts([]).to_parquet(tmp_path/'new.parquet')
    with pytest.raises(DataError, match='new.parquet is none. Leave it out'): load_data('text', tmp_path/'new.parquet', encoding='cp1252', **where)
    for o in (tmp_path/'texts').rglob('*.txt'): o.write_bytes(o.read_bytes().decode('cp850').encode('cp1252'))
    mixed = load_data('text', tmp_path/'old.csv', encoding='cp1252', checkpoint=str(path), valid=tmp_path/'texts', bad='skip')
    assert len(mixed.sft.rows)==8

def test_encoding_of_other_data_and_in_the_shell(tmp_path, capsys):
    toy,path = checkpoint(tmp_path, 'bert')
    learn = sft_learner(load_data('text', toy['source'], checkpoint=str(path)))
    label = learn.dls.sft.vocab[0]
    (tmp_path/'old.csv').write_bytes(f'text,label\nschön,{label}\nübel,{label}\n'.encode('cp1252'))
    ev = evaluate(learn, on=tmp_path/'old.csv', encoding='cp1252')
    assert list(ev.rows.text)==['schön','übel']
    ev.rows[['text','target','prediction']].to_csv(tmp_path/'judged.csv', index=False, encoding='cp1252')
    assert list(evaluate(tmp_path/'judged.csv', encoding='cp1252').rows.text)==['schön','übel']
    model = load_predictor(save_predictor(learn, tmp_path/'m'))
    assert len(model.predict(tmp_path/'old.csv', encoding='cp1252'))==2
    (tmp_path/'items.txt').write_bytes('schön\nübel\n'.encode('cp1252'))
    capsys.readouterr()
    assert main(['predict', str(tmp_path/'m'), str(tmp_path/'items.txt'), '--device', 'cpu', '--encoding', 'cp1252'])==0
    assert capsys.readouterr().out.count('\n')==3
    assert main(['evaluate', str(tmp_path/'m'), str(tmp_path/'old.csv'), '--device', 'cpu'])==2
    assert capsys.readouterr().err.strip().endswith('old.csv --device cpu --encoding cp1252')

def test_truncation_is_told_and_is_no_error(tmp_path, capsys):
    _,path = checkpoint(tmp_path, 'bert')
    dls = load_data('text', texts([LONG, LONG]), checkpoint=str(path))
    assert truncation(dls.sft)==dict(texts=14, tokens=int(dls.sft.rows.tokens.sum()), cut_texts=2, cut_tokens=2*(102-64))
    assert 'Cut 2 of 14 texts after 64 tokens; 76 of' in capsys.readouterr().err
    assert max(len(o) for dl in dls.loaders for o,*_ in dl.dataset)==64
    load_data('text', texts([LONG]), checkpoint=str(path), max_length=10)
    assert 'max_length of up to 64 reads more' in capsys.readouterr().err
    assert not capsys.readouterr().err

def test_limits_of_models(tmp_path):
    for kind,limit in dict(bert=64, roberta=65, mpnet=64, gpt2=64).items():
        toy,path = checkpoint(tmp_path/kind, kind)
        tokens = dict(max_length=limit)
        learn = sft_learner(load_data('text', texts([LONG, LONG]), checkpoint=str(path), **tokens))
        assert max(x['input_ids'].shape[1] for x,_ in learn.dls.train)==limit
        for x,_ in learn.dls.train: assert learn.model(x).isfinite().all()
        for wrong in (limit+1, 1, 'ten', True):
            with pytest.raises(DataError, match=f'max_length must be a whole number of tokens from . to {limit}.*, got {wrong!r}'):
                load_data('text', toy['source'], checkpoint=str(path), max_length=wrong)

def pairs():
    premise = [f'{mood} day {i}' for mood in ('fine','dull') for i in range(6)]
    return pd.DataFrame(dict(premise=premise, claim=['warm','sad']*6, label=['yes','no']*6, id=range(12)))

@pytest.mark.parametrize('kind', ['bert','roberta','gpt2','deberta-v2'])
@pytest.mark.parametrize('head', HEADS, ids=str)
def test_pairs(tmp_path, kind, head, home):
    toy,path = checkpoint(tmp_path, kind)
    dls = load_data('text', pairs(), input=['premise','claim'], checkpoint=str(path))
    assert dls.sft.rows.text[0]==('fine day 0','warm') and 'id' in dls.sft.rows and dls.sft.preprocess['pair']
    x,_ = dls.valid.one_batch()
    if kind=='bert': assert x['token_type_ids'].max()==1
    learn = sft_learner(dls, head=head, freeze=-2)
    still(learn.model)
    with learn.no_bar(), learn.no_logging(), frozen_cache(learn): learn.fit(1)
    ev = evaluate(learn)
    save_predictor(learn, tmp_path/'out')
    model = load_predictor(tmp_path/'out')
    items = list(ev.rows.text)
    assert np.abs(model.predict_proba(items)[['no','yes']].to_numpy()-ev.probabilities).max()<1e-5
    assert len(evaluate(learn, on=pairs(), input=['premise','claim']).rows)==12
    assert len(evaluate(model, on=pairs()).rows)==12 and len(model.predict(pairs().drop(columns='label')))==12
    with pytest.raises(BadRows, match='one text, pairs are expected'): model.predict(['fine day'])
    other = pairs().assign(claim=lambda d: d.claim.where(d.index!=3, None))
    with pytest.raises(BadRows, match=r'row 3: text 2: empty text'): load_data('text', other, input='premise,claim', checkpoint=str(path))

def test_pairs_are_cut_at_the_longer_text(tmp_path):
    _,path = checkpoint(tmp_path, 'bert')
    frame = pairs()
    frame.loc[0,'premise'] = LONG
    dls = load_data('text', frame, input=('premise','claim'), checkpoint=str(path))
    ids = next(o for dl in dls.loaders for o,*_ in dl.dataset if len(o)==64)
    assert sum(ids.kinds)==len(text_coder(dls.sft).tokenizer('warm', add_special_tokens=False)['input_ids'])+1

def test_one_text_model_refuses_pairs_and_three_columns(tmp_path):
    learn = learner(tmp_path)
    with pytest.raises(BadRows, match='is a tuple, not a text'): evaluate(learn, on=pd.DataFrame(dict(text=[('a','b')], label=['good'])))
    with pytest.raises(DataError, match='or two columns as a pair'): load_data('text', pairs(), input=['premise','claim','id'])
    with pytest.raises(DataError, match="task 'image' has the inputs image"): load_data('image', pairs(), input=['premise','claim'])

def test_several_labels(tmp_path):
    toy,path = checkpoint(tmp_path, 'bert')
    frame = pd.DataFrame(dict(text=[f'day {i}' for i in range(16)], label=['a;b','a','b',''][1:3]*8))
    frame.loc[:5,'label'] = 'a;b'
    for head in HEADS:
        dls = load_data('text', frame, label_delim=';', checkpoint=str(path))
        learn = sft_learner(dls, head=head)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        ev = evaluate(learn)
        save_predictor(learn, tmp_path/str(head))
        assert np.abs(probabilities(load_predictor(tmp_path/str(head)), ev)-ev.probabilities).max()<1e-5
    assert json.loads((tmp_path/'hf'/'config.json').read_text())['problem_type']=='multi_label_classification'

def test_batches_are_padded_to_their_longest_and_sorted(tmp_path):
    frame = pd.DataFrame(dict(text=['day '*(1+i%40) for i in range(400)], label=['a','b']*200))
    _,path = checkpoint(tmp_path, 'bert')
    dls = load_data('text', frame, checkpoint=str(path), batch_size=8)
    def waste(dl): return sum((b[0]['attention_mask']==0).sum().item() for b in dl)/sum(b[0]['attention_mask'].numel() for b in dl)
    assert waste(dls.valid)<.1 and waste(dls.train)<.1
    assert list(dls.valid.get_idxs())==sorted(range(80), key=lambda i: -dls.valid.res[i])
    n = [b[0]['input_ids'].shape[1] for b in dls.train]
    assert n[0]==max(n) and n!=sorted(n, reverse=True)
    assert all(b[0]['attention_mask'][:,0].all() and b[0]['attention_mask'].sum(1).max()==b[0]['input_ids'].shape[1] for b in dls.train)

def test_items_come_in_the_order_of_the_rows(tmp_path):
    learn = learner(tmp_path)
    spec = learn.spec
    dl = spec.task.item_loader(spec, spec.rows, 3)
    coder = text_coder(spec)
    got = [coder.decode(r[m==1].tolist()) for (b,) in dl for r,m in zip(b['input_ids'], b['attention_mask'])]
    assert got==[coder.decode(o) for o in coder.encode(list(spec.rows.text))]
    assert len(spec.task.lengths(spec, spec.rows))==len(spec.rows)

def test_fastai_doors(tmp_path, displayed):
    learn = learner(tmp_path)
    learn.dls.show_batch(max_n=2)
    said = displayed()
    assert 'text' in said and 'label' in said and ('day' in said or 'evening' in said)
    learn.fit(1)
    learn.show_results(max_n=3)
    assert 'prediction' in displayed()
    preds,targs = learn.get_preds()
    ev = evaluate(learn)
    assert np.abs(preds.numpy()-ev.probabilities).max()<1e-5
    test = learn.dls.test_dl(['fine warm day','dull day'])
    assert learn.get_preds(dl=test)[0].shape==(2,2)
    learn.validate()

def test_the_same_checkpoint_without_weights(tmp_path):
    learn = learner(tmp_path, load=dict(max_length=20, pooling='cls'))
    assert sft_learner(learn.dls, pretrained=False).model.pooling=='cls'

def test_fastai_predict(tmp_path):
    label,_,p = learner(tmp_path).predict('fine warm day')
    assert label in ('good','bad') and abs(p.sum()-1)<1e-5

def test_text_in_a_table_is_escaped(tmp_path, monkeypatch):
    import IPython.display, sys
    from sft_nb.data import texts
    shown = []
    monkeypatch.setitem(sys.modules, 'ipykernel', sys)
    monkeypatch.setattr(IPython.display, 'display', lambda o: shown.append(o.data))
    texts._show_table(pd.DataFrame(dict(text=['<script>x</script>'], label=['a'])))
    assert '<script>' not in shown[0] and '&lt;script&gt;' in shown[0]

def test_another_checkpoint_needs_its_own_tokens(tmp_path):
    learn = learner(tmp_path/'a')
    _,other = checkpoint(tmp_path/'b', 'gpt2')
    with pytest.raises(CheckpointError, match='Load the|another tokenizer'): sft_learner(learn.dls, checkpoint=str(other))

def test_tokenizer_larger_than_the_network_is_told(tmp_path):
    with pytest.raises(CheckpointError, match='belong to different models'): learner(tmp_path, 'bert', more=dict(vocab_size=20))

def test_heads_that_do_not_fit(tmp_path):
    with pytest.raises(HeadError, match="Valid: None, .512., 'hf'"): learner(tmp_path, head='flatten:8')
    with pytest.raises(HeadError, match='no rate to set'): learner(tmp_path/'g', 'gpt2', head='hf', dropout=.2)
    m = learner(tmp_path/'h', head='hf', dropout=.3).model
    assert m.net.dropout.p==.3

def test_module_as_head(tmp_path):
    m = learner(tmp_path, head=nn.Sequential(nn.Linear(32, 4), nn.Tanh(), nn.Linear(4, 2))).model
    assert m(m.example[0]).shape==(2,2)

def test_gradient_checkpointing_changes_nothing(tmp_path):
    learn = learner(tmp_path)
    still(learn.model)
    x,y = learn.dls.valid.one_batch()
    grads = []
    for on in (False, True):
        learn.model.checkpointing = on
        learn.model.zero_grad()
        learn.loss_func(learn.model.train()(x), y).backward()
        grads.append([p.grad.clone() for p in learn.model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a,b in zip(*grads))

def test_from_scratch(tmp_path):
    toy,path = checkpoint(tmp_path, 'bert')
    (path/'model.safetensors').unlink()
    for head in HEADS: assert len(sft_learner(load_data('text', toy['source'], checkpoint=str(path), pretrained=False), head=head).model.groups)==5

def test_nothing_is_asked_of_the_network(tmp_path):
    toy,path = checkpoint(tmp_path, 'bert')
    code = ("import socket,sys\ndef no(*a,**k): raise SystemExit('network')\nsocket.socket.connect=no\nfrom sft_nb.data.load import load_data\n"
            "from sft_nb.training.learner import sft_learner\nfrom sft_nb.deployment.predictor import *\nl=sft_learner(load_data('text',sys.argv[1],checkpoint=sys.argv[2]))\n"
            "save_predictor(l,sys.argv[3],metrics={})\nprint(load_predictor(sys.argv[3]).predict(['fine day']).prediction[0])")
    env = {k:v for k,v in os.environ.items() if k!='HF_HUB_OFFLINE'}
    run = subprocess.run([sys.executable,'-c',code,str(toy['source']),str(path),str(tmp_path/'out')], capture_output=True, text=True, env=env)
    assert run.returncode==0 and run.stdout.strip() in ('good','bad'), run.stderr[-2000:]

def test_a_column_of_the_source_named_tokens_is_kept(tmp_path):
    _,path = checkpoint(tmp_path, 'bert')
    dls = load_data('text', texts(['day']).assign(tokens='mine'), checkpoint=str(path))
    assert set(dls.sft.rows.source_tokens)=={'mine'} and dls.sft.rows.tokens.min()>2

@pytest.mark.slow
def test_the_default_checkpoint(tmp_path):
    demo = make_demo('text', tmp_path)
    learn = sft_learner(load_data('text', demo['source'], max_items=200), freeze=-2)
    assert learn.spec.preprocess['max_length']==256 and learn.spec.preprocess['pooling']=='mean' and learn.model.borders()==list(range(1, 8))
    with learn.no_bar(), learn.no_logging(), frozen_cache(learn): learn.fit(2)
    ev = evaluate(learn)
    assert ev.metrics['accuracy']>.65
    save_predictor(learn, tmp_path/'out')
    model = load_predictor(tmp_path/'out')
    assert np.abs(probabilities(model, ev)-ev.probabilities).max()<1e-5
    import sentence_transformers as st
    texts = list(ev.rows.text[:8])
    x = text_coder(model.spec)
    with torch.no_grad(): want = model.model.features(x.batch(x.encode(texts)))
    assert np.abs(st.SentenceTransformer(str(tmp_path/'out'), device='cpu').encode(texts)-want.numpy()).max()<1e-5

def test_sentiment_tables(tmp_path, monkeypatch):
    from sft_nb.checkpoints import assets
    from sft_nb.tasks import demo_data
    (tmp_path/'amazonReviewSnippets_GroundTruth.txt').write_bytes('1\t2.5\tcaf\u00e9, "good"\r\n2\t-0.2\tso so\r\n3\t-3\tbad\tone\r\n'.encode('cp1252'))
    (tmp_path/'tweets_GroundTruth.txt').write_text('1\t.5\tfine\n2\t-.5\tnot fine\n')
    monkeypatch.setattr(assets, 'fetch', lambda name: tmp_path)
    out = demo_data.sentiment_demo(tmp_path)
    table = pd.read_csv(out['source'])
    assert list(table.text)==['caf\u00e9, "good"','bad\tone'] and list(table.label)==['positive','negative']
    assert len(pd.read_csv(out['source'].parent/'tweets.csv'))==2
