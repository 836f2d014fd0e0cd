"Instruction tuning: what is read, what is learned, where an answer ends. Most tests are a fault that users of other tools have met"
import json, subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from sft_nb.checkpoints.references import open_checkpoint
from sft_nb.core.basics import DataError
from sft_nb.data.chat import ChatCoder, chat_coder, chat_item_loader
from sft_nb.data.load import load_data
from sft_nb.data.problems import BadRows
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.models.causal_model import CausalModel
from sft_nb.tasks.small_nets import CHATML, small_llama
from sft_nb.tasks.toys import toy_answers
from sft_nb.training.cache import cache_key
from sft_nb.training.callbacks import Accumulate
from sft_nb.training.learner import sft_learner

def user(text): return dict(role='user', content=text)
def assistant(text): return dict(role='assistant', content=text)
TALK = [user('What color is snow?'), assistant('white'), user('and of coal'), assistant('black')]

@pytest.fixture(scope='module')
def toy(tmp_path_factory): return toy_answers(tmp_path_factory.mktemp('toy'))

@pytest.fixture(autouse=True)
def alone(home, one_thread): pass

def tokenizer(toy, template=None, **names):
    tok = AutoTokenizer.from_pretrained(toy['checkpoint'])
    if template: tok.chat_template = template
    for k,v in names.items(): setattr(tok, k, v)
    return tok

def variant(toy, folder, template, **names):
    "A copy of the toy's network with another template"
    AutoModelForCausalLM.from_pretrained(toy['checkpoint']).save_pretrained(folder)
    tokenizer(toy, template, **names).save_pretrained(folder)
    return str(folder)

def data(toy, rows=None, **kw): return load_data('chat', toy['source'] if rows is None else rows, **{**dict(checkpoint=toy['checkpoint'], valid=.25), **kw})
def learner(toy, rows=None, load=None, **kw):
    learn = sft_learner(data(toy, rows, **(load or {})), **kw)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
    learn.logger = lambda *_: None
    return learn

def read(coder, tokens): return coder.tokenizer.decode(list(tokens))
def learned(coder, tokens): return read(coder, [tokens[i] for i in tokens.learned])
def problems(toy, rows, **kw):
    with pytest.raises(BadRows) as e: data(toy, rows, **kw)
    return dict(zip(e.value.problems['row'], e.value.problems['problem']))

# Rows

GOOD = pd.DataFrame(dict(prompt=['one','two','three'], completion=['two','three','four']))

@pytest.mark.parametrize('rows,first', [
    (pd.DataFrame(dict(messages=[TALK]*4)), (TALK[:3], 'black')),
    (pd.DataFrame(dict(messages=[json.dumps(TALK)]*4)), (TALK[:3], 'black')),
    (pd.DataFrame(dict(conversations=[[{'from':'human', 'value':'a'}, {'from':'gpt', 'value':'b'}]]*4)), ('a', 'b')),
    (pd.DataFrame(dict(instruction=['add']*4, input=['1 2']*4, output=['3']*4)), ('add\n\n1 2', '3')),
    (pd.DataFrame(dict(instruction=['add']*4, output=[3]*4, system=['be brief']*4)), ([dict(role='system', content='be brief'), user('add')], '3')),
    (pd.DataFrame(dict(prompt=[TALK[:3]]*4, completion=[[assistant('black')]]*4)), (TALK[:3], 'black'))], ids=['messages','json','sharegpt','alpaca','system','lists'])
def test_usual_forms_are_read(toy, rows, first, capsys):
    rows = rows.assign(n=range(4), split=['train','train','train','valid'])
    dls = data(toy, rows)
    assert (dls.sft.rows.prompt[0], dls.sft.rows.completion[0])==first and list(dls.sft.rows.n)==[0,1,2,3]
    assert ('Reading' in capsys.readouterr().err)==('prompt' not in rows)

def test_forms_are_read_from_files(toy, tmp_path):
    path = tmp_path/'talk.jsonl'
    path.write_text('\n'.join(json.dumps(dict(messages=[user(f'{i}'), assistant('b')])) for i in range(8)))
    assert list(data(toy, path).sft.rows.prompt)==[str(i) for i in range(8)]
    assert data(toy, [dict(messages=TALK[:2]), dict(messages=TALK)]*3).sft.rows.completion[0]=='white'

def test_bad_rows_are_named(toy):
    rows = pd.DataFrame(dict(messages=pd.Series([[user('a')], [user('a'), dict(role='robot', content='b')], [user('a'), assistant('')], [user(['a']), assistant('b')],
        [user('a'), dict(role='assistant', content='b', tool_calls=[1])], [assistant('b')], [user('a <|im_end|>'), assistant('b')], [user('a'), assistant('<|im_start|>')],
        [user('long '*300), assistant('b')], TALK, TALK])))
    found = problems(toy, rows)
    for i,words in enumerate(["ends with 'user'", "message 2: unknown role 'robot'", 'empty completion', 'message 1: content is a list', "has 'tool_calls'",
                              'there is no message before the answer', "holds '<|im_end|>'", "holds '<|im_start|>'", 'leaves no room for an answer (max_length is 256)']):
        assert words in found[f'row {i}'], (i, found)
    assert 'tokens leaves no room' in found['row 8'] and len(found)==9

def test_what_the_template_refuses_is_quoted(toy, tmp_path):
    refusing = "{%- if messages[0]['role']=='system' -%}{{ raise_exception('no system role here') }}{%- endif -%}"+CHATML
    rows = pd.DataFrame(dict(messages=[[dict(role='system', content='x'), *TALK], TALK, TALK]))
    assert 'no system role here' in problems(toy, rows, checkpoint=variant(toy, tmp_path/'m', refusing))['row 0']

def test_options_are_checked(toy):
    for kw,words in ((dict(train_on='first'), "train_on='first'"), (dict(max_length=10**6), 'max_length must be .*, got 1000000'), (dict(template='alpaca'), "template='alpaca'"),
                     (dict(system=3), 'system'), (dict(max_new_tokens=0), 'max_new_tokens must be')):
        with pytest.raises(DataError, match=words): data(toy, **kw)

# Tokens and masks

def test_the_end_token_is_learned_and_headers_are_not(toy):
    coder = ChatCoder(tokenizer(toy))
    tokens = coder.taught(TALK[:3], 'black')
    assert learned(coder, tokens)=='white<|im_end|>black<|im_end|>'
    assert read(coder, tokens)==coder.tokenizer.apply_chat_template(TALK, tokenize=False).rstrip('\n')
    assert all(o.learned and o[o.learned[-1]]==coder.end_id for o in coder.conversations(data(toy).sft.rows))

def test_last_or_all_answers(toy):
    coder = ChatCoder(tokenizer(toy), train_on='last')
    assert learned(coder, coder.taught(TALK[:3], 'black'))=='black<|im_end|>'

def test_the_end_token_is_that_of_the_template(toy, tmp_path):
    tok = tokenizer(toy, eos_token='<|endoftext|>', pad_token='<|endoftext|>')
    coder = ChatCoder(tok)
    assert coder.end=='<|im_end|>' and learned(coder, coder.taught('a', 'b'))=='b<|im_end|>'
    learn = learner(toy, load=dict(checkpoint=variant(toy, tmp_path/'m', None, eos_token='<|endoftext|>', pad_token='<|endoftext|>')))
    assert learn.model.net.generation_config.eos_token_id[0]==coder.end_id

def test_padding_by_the_end_token_is_harmless(toy):
    coder = ChatCoder(tokenizer(toy))
    assert coder.pad_id==coder.end_id
    x,y = data(toy).valid.one_batch()
    ids = x['input_ids'].gather(1, x['places']+1)
    assert torch.equal(ids[y!=-100], y[y!=-100]) and ((y==coder.end_id).sum(1)==1).all()

def test_templates_without_an_end_token_are_refused(toy, tmp_path):
    endless = "{%- for m in messages -%}{{ m['role']+': '+m['content']+'\\n' }}{%- endfor -%}"
    with pytest.raises(DataError, match='not a special token: a model tuned on it would not stop'): data(toy, checkpoint=variant(toy, tmp_path/'m', endless))

def test_no_marker_is_looked_for(toy):
    inst = "{%- for m in messages -%}{%- if m['role']=='user' -%}{{ '[INST] '+m['content']+' [/INST]' }}{%- else -%}{{ ' '+m['content']+eos_token }}{%- endif -%}{%- endfor -%}"
    coder = ChatCoder(tokenizer(toy, inst))
    assert learned(coder, coder.taught(TALK[:3], 'black'))==' white<|im_end|> black<|im_end|>'
    assert learned(coder, coder.taught('say [/INST] assistant', '[INST] assistant'))==' [INST] assistant<|im_end|>'

def test_prompt_that_is_no_prefix_is_a_bad_row(toy, tmp_path):
    turning = "{%- if messages[-1]['role']=='assistant' -%}{{ 'answered: ' }}{%- endif -%}"+CHATML
    assert 'renders the prompt differently once an answer follows' in problems(toy, GOOD, checkpoint=variant(toy, tmp_path/'m', turning))['row 0']

def test_one_begin_token(toy):
    coder = ChatCoder(tokenizer(toy, "{{ bos_token }}"+CHATML, add_bos_token=True))
    tokens = coder.taught('a', 'b')
    assert (tokens.count(coder.tokenizer.bos_token_id), coder.encode(['a'])[0].count(coder.tokenizer.bos_token_id))==(1,1)

def test_thoughts_that_the_template_drops_are_not_learned(toy, tmp_path, capsys):
    thinking = ("{%- for m in messages -%}{{ '<|im_start|>'+m['role']+'\\n' }}{%- if m['role']=='assistant' and loop.last -%}{{ '<think></think>' }}{%- endif -%}"
                "{{ m['content']+'<|im_end|>\\n' }}"
                "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}")
    coder = ChatCoder(tokenizer(toy, thinking))
    assert learned(coder, coder.taught(TALK[:3], 'black'))=='<think></think>black<|im_end|>'
    dls = data(toy, pd.DataFrame(dict(messages=[TALK]*4, n=range(4))), checkpoint=variant(toy, tmp_path/'m', thinking))
    assert '4 conversations become 8 rows, one per answer' in capsys.readouterr().err
    rows,coder = dls.sft.rows,chat_coder(dls.sft)
    assert rows.columns.is_unique and list(rows.turn)==[1,2]*4 and list(rows.item[:2])==['row 0 turn 1','row 0'] and list(rows.n)==[0,0,1,1,2,2,3,3]
    assert [learned(coder, o) for o in coder.conversations(rows)]==['<think></think>white<|im_end|>','<think></think>black<|im_end|>']*4
    assert all(o.split.nunique()==1 for _,o in rows.groupby('group')) and rows.prompt[0]==TALK[0]['content'] and rows.prompt[1]==TALK[:3]

def test_a_row_per_answer_is_trained_and_cached_like_others(toy, tmp_path):
    thinking = CHATML.replace("m['content']", "(m['content'].split('</think>')[-1] if not loop.last else m['content'])")
    ref = variant(toy, tmp_path/'m', thinking)
    talk = [user('one'), assistant('<think>a</think>two'), user('three'), assistant('<think>b</think>four')]
    rows = pd.DataFrame(dict(messages=[talk, TALK]*4))
    def run(**kw):
        learn = learner(toy, rows, dict(checkpoint=ref, valid=.25, **kw))
        learn.fit_head(2, 1e-2)
        return learn,torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    learn,cached = run()
    assert learn.cached_groups and (learn.spec.rows.turn>0).sum()==8 and len(learn.spec.rows)==12
    coder = chat_coder(learn.spec)
    said = [learned(coder, o) for o in coder.conversations(learn.spec.rows[:3])]
    assert said[:2]==['<think>a</think>two<|im_end|>','<think>b</think>four<|im_end|>'] and said[2]=='white<|im_end|>black<|im_end|>'
    assert len(evaluate(learn, 'train'))==(learn.spec.rows.split=='train').sum()
    assert len(data(toy, rows, checkpoint=ref, train_on='last').sft.rows)==8

def test_the_date_is_pinned(toy, tmp_path, capsys):
    dated = "{{ 'Today is '+strftime_now('%d %b %Y')+'.\\n' }}"+CHATML
    learn = learner(toy, load=dict(checkpoint=variant(toy, tmp_path/'m', dated)))
    assert 'pinned to 2024-07-26' in capsys.readouterr().err
    assert chat_coder(learn.spec).render([user('a')]).startswith('Today is 26 Jul 2024.\n')
    folder = save_predictor(learn, tmp_path/'saved')
    assert AutoTokenizer.from_pretrained(folder).apply_chat_template([user('a')], tokenize=False).startswith('Today is 26 Jul 2024.\n')

def test_an_injected_system_prompt_is_shown(toy, tmp_path, capsys):
    added = "{%- if messages[0]['role']!='system' -%}{{ '<|im_start|>system\\nYou are a helpful machine<|im_end|>\\n' }}{%- endif -%}"+CHATML
    ref = variant(toy, tmp_path/'m', added)
    data(toy, checkpoint=ref)
    assert 'You are a helpful machine' in capsys.readouterr().err
    coder = chat_coder(data(toy, checkpoint=ref, system='be brief').sft)
    assert 'helpful' not in coder.render(coder.conversation('a')) and 'be brief' in coder.render(coder.conversation('a'))

def test_long_answers_are_cut_aloud_and_loss_is_finite(toy, capsys):
    rows = GOOD.assign(completion=['two '*60, 'three', 'four'])
    dls = data(toy, rows, max_length=60)
    assert 'Cut 1 of 3 conversations after 60 tokens' in capsys.readouterr().err
    tokens = chat_coder(dls.sft).conversations(dls.sft.rows)[0]
    assert (len(tokens), tokens.n>60, tokens[-1]!=chat_coder(dls.sft).end_id, len(tokens.learned)>0)==(60, True, True, True)
    assert np.isfinite(evaluate(sft_learner(dls), 'train').rows.loss).all()

def test_equal_prompts_stay_on_one_side(toy, capsys):
    rows = pd.DataFrame(dict(prompt=[f'p{i//3}' for i in range(30)], completion=[str(i) for i in range(30)]))
    split = data(toy, rows).sft.rows
    assert not set(split.prompt[split.split=='train']) & set(split.prompt[split.split=='valid'])
    assert 'equal prompts' in capsys.readouterr().err

# Batches and model

def test_prediction_reads_what_stood_before_the_answer(toy):
    dls = data(toy, pd.DataFrame(dict(messages=[TALK]*4)))
    x,_ = dls.valid.one_batch()
    coder,ids = chat_coder(dls.sft),x['prompt'][0][x['prompt_mask'][0].bool()].tolist()
    assert ids==coder.tokenizer.apply_chat_template(TALK[:3], add_generation_prompt=True, return_dict=False)
    tokens = coder.taught(TALK[:3], 'black')
    assert ids==tokens[:tokens.prompt]

def test_prompts_are_padded_on_the_left_and_hold_no_answer(toy):
    learn = learner(toy)
    x,y = learn.dls.valid.one_batch()
    assert (x['prompt_mask'][:,-1]==1).all() and x['input_ids'].shape[1]>x['prompt'].shape[1]
    both,rows = learn.model.eval().generate(x),learn.spec.rows[learn.spec.rows.split=='valid']
    alone = next(iter(chat_item_loader(learn.spec, rows[:1], 1)))
    alone = alone[0] if isinstance(alone, tuple) else alone
    places = [i for i,p in enumerate(x['prompt']) if p[x['prompt_mask'][i].bool()].tolist()==alone['prompt'][0].tolist()]
    out = learn.model.generate(alone).tokens[0]
    assert torch.equal(both.tokens[places[0]][:len(out)], out)

def test_scores_of_learned_places_alone(toy):
    learn = learner(toy)
    x,y = learn.dls.valid.one_batch()
    assert learn.model(x).shape==(*y.shape, learn.model.net.config.vocab_size)

def test_loss_does_not_depend_on_the_batch(toy):
    seen = {b:(float(o[0]), float(o[1]), float(o[2])) for b in (1, 3, 32) for o in [learner(toy, load=dict(batch_size=b, valid=.5)).validate()]}
    assert np.allclose(seen[1], seen[3], atol=1e-5) and np.allclose(seen[1], seen[32], atol=1e-5)
    ev = evaluate(learner(toy, load=dict(valid=.5)))
    assert np.allclose([ev.metrics['perplexity'], ev.metrics['token_accuracy']], seen[1][1:], atol=1e-4) and np.isclose(np.log(seen[1][1]), seen[1][0], atol=1e-5)

def test_loss_by_hand(toy):
    learn = learner(toy)
    ev,coder = evaluate(learn),chat_coder(learn.spec)
    rows,net = learn.spec.rows[learn.spec.rows.split=='valid'],learn.model.net.eval()
    for r,loss,n in zip(rows.itertuples(), ev.rows.loss, ev.rows.learned):
        prompt = coder.tokenizer.apply_chat_template([user(r.prompt)], add_generation_prompt=True, return_dict=False)
        answer = coder.tokenizer(r.completion+'<|im_end|>', add_special_tokens=False)['input_ids']
        with torch.no_grad(): out = net(input_ids=torch.tensor([prompt+answer]), labels=torch.tensor([[-100]*len(prompt)+answer]))
        assert abs(float(out.loss)-loss)<1e-5 and len(answer)==n

def test_accumulated_steps_are_those_of_a_large_batch(toy):
    def run(bs, **kw):
        learn = learner(toy, load=dict(batch_size=bs, valid=.34), freeze=None, wd=0.)
        inner = [o for o in learn.dls.train]
        learn.fit(1, 1e-2, **kw)
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()]),len(inner)
    (large,_),(small,n) = run(10),run(2, cbs=Accumulate(10))
    assert n>1 and (large-small).abs().max()<1e-4

FAMILIES = dict(llama=('LlamaConfig', {}), qwen2=('Qwen2Config', {}), qwen3=('Qwen3Config', dict(head_dim=8)), mistral=('MistralConfig', {}), smollm3=('SmolLM3Config', {}),
                gemma=('GemmaConfig', dict(head_dim=8)), gemma2=('Gemma2Config', dict(head_dim=8)), gpt2=('GPT2Config', None), gpt_neox=('GPTNeoXConfig', {}), phi=('PhiConfig', {}))

@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('family', FAMILIES)
def test_pieces_are_the_whole_at_every_border(family, tied):
    import transformers
    name,more = FAMILIES[family]
    kw = dict(n_embd=16, n_layer=3, n_head=2, n_positions=32) if more is None else dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=32, **more)
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(getattr(transformers, name)(vocab_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied, **kw)).eval()
    ids = torch.tensor([[3,4,5,6,7,2],[8,9,2,0,0,0]])
    x = dict(input_ids=ids, attention_mask=(ids!=0).long())
    m = CausalModel(net, x)
    places = torch.tensor([[0,3,4],[1,0,0]])
    layers = [g for g in m.groups if g not in ('embeddings','head')]
    assert len(layers)==3 and set(range(2, 5))<=set(m.borders()) and any(n.endswith(('lm_head.weight','embed_out.weight')) for n in m.groups['head'])!=tied
    with torch.no_grad():
        whole,logits = m({**x, 'places':places}),net(**x).logits
        for b in m.borders(): assert torch.equal(m.suffix(b, m.prefix(b, {**x, 'places':places})), whole), b
        assert torch.allclose(whole[0], logits[0,places[0]], atol=1e-5) and torch.allclose(whole[1,0], logits[1,1], atol=1e-5)

def test_an_edited_answer_misses_the_cache(toy):
    learn = learner(toy)
    rows = learn.spec.rows
    other = rows.assign(completion=[*rows.completion[:-1], 'orange'])
    assert cache_key(learn, 2, rows)!=cache_key(learn, 2, other) and cache_key(learn, 2, rows)==cache_key(learn, 2, rows.copy())

def test_another_template_misses_the_cache(toy, tmp_path):
    a = learner(toy)
    b = learner(toy, load=dict(checkpoint=variant(toy, tmp_path/'m', CHATML.replace('<|im_end|>\n', '<|im_end|>\n\n'))))
    b.spec.preprocess.update(max_new_tokens=a.spec.preprocess['max_new_tokens'])
    assert cache_key(a, 2, a.spec.rows)!=cache_key(b, 2, b.spec.rows)

def test_checkpointing_trains_above_a_frozen_part(toy):
    from sft_nb.training.callbacks import checkpoint_activations
    def run(again):
        learn = learner(toy)
        if again: checkpoint_activations(learn)
        learn.fit(1, 1e-2)
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    assert (run(True)-run(False)).abs().max()<1e-5

def test_the_mask_is_shown(toy, capsys):
    data(toy, pd.DataFrame(dict(messages=[TALK]*4))).show_batch(max_n=1)
    text = capsys.readouterr().out
    assert '<|im_start|>user\nWhat color is snow?<|im_end|>\n<|im_start|>assistant\n⟦white<|im_end|>⟧\n' in text and '⟦black<|im_end|>⟧' in text and ' learned\n' in text
    data(toy, GOOD.assign(completion='two '*60), max_length=60).show_batch(max_n=1)
    assert 'cut before the end of the answer' in capsys.readouterr().out

# Writing and saving

PLAINLY = '''
import sys, json
from transformers import AutoModelForCausalLM, AutoTokenizer
net,tok = AutoModelForCausalLM.from_pretrained(sys.argv[1]),AutoTokenizer.from_pretrained(sys.argv[1])
out = []
for q in json.loads(sys.argv[2]):
    x = tok.apply_chat_template([dict(role='user', content=q)], add_generation_prompt=True, return_tensors='pt', return_dict=True)
    ids = net.generate(**x)[0,x['input_ids'].shape[1]:]
    out.append([tok.decode(ids, skip_special_tokens=True), bool(ids[-1]==tok.convert_tokens_to_ids('<|im_end|>')), len(ids)])
print(json.dumps(out))
'''

def test_the_saved_folder_writes_the_same_and_stops_elsewhere(toy, tmp_path):
    learn = learner(toy, freeze=None)
    learn.fit(40, 3e-3)
    ev = evaluate(learn, 'train')
    assert ev.metrics['stopped']==1 and ev.metrics['exact']>.5 and ev.rows.stopped.all()
    folder = save_predictor(learn, tmp_path/'saved')
    out = subprocess.run([sys.executable, '-c', PLAINLY, folder, json.dumps(list(ev.rows.prompt))], capture_output=True, text=True, check=True)
    there = json.loads(out.stdout.splitlines()[-1])
    assert [o[0] for o in there]==ev.rows.prediction.tolist() and all(o[1] for o in there)
    how = json.loads((folder/'generation_config.json').read_text())
    coder = chat_coder(learn.spec)
    assert (how['eos_token_id'], how['pad_token_id'], how['max_new_tokens'])==([coder.end_id], coder.pad_id, coder.max_new_tokens)
    assert (folder/'chat_template.jinja').read_text()==CHATML
    with safe_open(folder/'model.safetensors', 'pt') as f:
        assert 'lm_head.weight' not in f.keys()
        assert f.get_slice('model.embed_tokens.weight').get_shape()[0]==learn.model.net.config.vocab_size
    assert len(coder.tokenizer)==len(tokenizer(toy))

def test_a_saved_model_answers_conversations(toy, tmp_path):
    model = load_predictor(save_predictor(learner(toy), tmp_path/'saved'))
    said = model.predict(pd.DataFrame(dict(messages=[TALK[:3], TALK])))
    assert len(said)==2 and said.prediction[0]==said.prediction[1]
    assert len(model.predict(['one', 'two']))==2 and len(model.predict('one'))==1
    ev = evaluate(model, pd.DataFrame(dict(messages=[TALK]*3)))
    assert len(ev)==3 and ev.metrics['perplexity']>1 and set(ev.metrics)=={'perplexity','token_accuracy','stopped','exact','length_ratio','bleu','chrf'}

def test_base_models_take_the_plain_template(toy, tmp_path):
    AutoModelForCausalLM.from_pretrained(toy['checkpoint']).save_pretrained(tmp_path/'base')
    tok = tokenizer(toy)
    tok.chat_template = None
    tok.save_pretrained(tmp_path/'base')
    with pytest.raises(DataError, match="has no chat template. .*template='plain'"): data(toy, checkpoint=str(tmp_path/'base'))
    learn = learner(toy, load=dict(checkpoint=str(tmp_path/'base'), template='plain'))
    folder = save_predictor(learn, tmp_path/'saved')
    assert AutoTokenizer.from_pretrained(folder).apply_chat_template(TALK, tokenize=False)=='What color is snow?\nwhite<|im_end|>and of coal\nblack<|im_end|>'
    assert len(load_predictor(folder).predict(['one']))==1
