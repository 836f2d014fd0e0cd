"Training of the task `chat`: packed is separate, batches and processes change nothing, killed runs go on, adapters merge into what they were"
import json, subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from sft_nb.core.basics import CheckpointError, DataError
from sft_nb.data import chat
from sft_nb.data.chat import ChatCoder, chat_coder, first_fit, learned_labels, packed_rows
from sft_nb.data.load import load_data
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.models import causal_model
from sft_nb.models.causal_model import CausalModel
from sft_nb.tasks.toys import toy_answers
from sft_nb.training.callbacks import checkpoint_activations
from sft_nb.training.learner import sft_learner

pytestmark = pytest.mark.usefixtures('home', 'one_thread')

@pytest.fixture(scope='module')
def toy(tmp_path_factory): return toy_answers(tmp_path_factory.mktemp('toy'))

def learner(toy, rows=None, load=None, **kw):
    learn = sft_learner(load_data('chat', toy['source'] if rows is None else rows, **{**dict(checkpoint=toy['checkpoint'], valid=.25, batch_size=4), **(load or {})}), **kw)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
    learn.logger = lambda *_: None
    return learn

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

# Packing

def coder_of(toy): return ChatCoder(AutoTokenizer.from_pretrained(toy['checkpoint']), 256)

NETS = dict(llama=('LlamaConfig', dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32, max_position_embeddings=256)),
            qwen2=('Qwen2Config', dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32, max_position_embeddings=256)),
            gpt2=('GPT2Config', dict(n_embd=16, n_layer=2, n_head=2, n_positions=256)))

def network(toy, name, attention, **kw):
    import transformers
    coder,(config,sizes) = coder_of(toy),NETS[name]
    torch.manual_seed(0)
    ends = dict(vocab_size=len(coder.tokenizer), pad_token_id=coder.pad_id, bos_token_id=coder.end_id, eos_token_id=coder.end_id, initializer_range=.3)
    net = AutoModelForCausalLM.from_config(getattr(transformers, config)(**ends, **sizes, **kw), attn_implementation=attention)
    return CausalModel(net, coder.whole([coder.numbers('one two three'), coder.numbers('one')])).eval(),coder

def conversations(coder, toy): return coder.conversations(pd.read_csv(toy['source']))

def step(m, x, y):
    "Scores, loss and gradients of a batch"
    m.zero_grad()
    scores = m(x)
    loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=-100)
    loss.backward()
    return scores.detach(),loss.item(),torch.cat([p.grad.flatten() for p in m.parameters()])

def both(m, coder, items):
    y = learned_labels(items)
    return step(m, {**coder.whole(items), **coder.learned(items)}, y),step(m, {**coder.learned(items), **coder.packed(items, first_fit(list(map(len, items)), 200))}, y),y

@pytest.mark.parametrize('attention', ['sdpa', 'eager'])
@pytest.mark.parametrize('name', NETS)
def test_packed_is_separate(toy, name, attention):
    m,coder = network(toy, name, attention)
    items = conversations(coder, toy)
    (scores,loss,grads),(packed,ploss,pgrads),y = both(m, coder, items)
    assert scores.shape==packed.shape and (scores-packed)[y!=-100].abs().max()<2e-5*scores.abs().max()
    assert abs(loss-ploss)<1e-5*loss and (grads-pgrads).norm()<1e-5*grads.norm()

def causal_alone(m, x, mask): return dict(attention_mask=mask, position_ids=x['position_ids'], use_cache=False) if 'conversation' in x else dict(attention_mask=mask, use_cache=False)
def positions_run_on(m, x, mask): return {k:v for k,v in RIGHT(m, x, mask).items() if k!='position_ids'}
RIGHT = causal_model._reading

@pytest.mark.parametrize('attention', ['sdpa', 'eager'])
@pytest.mark.parametrize('wrong,name', [(causal_alone, 'llama'), (causal_alone, 'qwen2'), (causal_alone, 'gpt2'), (positions_run_on, 'gpt2')], ids=str)
def test_a_wrong_mask_is_found(toy, monkeypatch, wrong, name, attention):
    "Rows that see each other, or positions that run on, cost and learn something else"
    monkeypatch.setattr(causal_model, '_reading', wrong)
    m,coder = network(toy, name, attention)
    (scores,_,grads),(packed,_,pgrads),y = both(m, coder, conversations(coder, toy))
    assert (scores-packed)[y!=-100].abs().max()>1e-2*scores.abs().max() and (grads-pgrads).norm()>1e-2*grads.norm()

def test_an_edit_of_one_conversation_leaves_its_neighbours(toy):
    m,coder = network(toy, 'llama', 'sdpa')
    items = conversations(coder, toy)[:4]
    x = {**coder.learned(items), **coder.packed(items, [[0,1,2,3]])}
    other = {**x, 'input_ids':torch.where(x['conversation']==2, (x['input_ids']+7)%200, x['input_ids'])}
    with torch.no_grad(): a,b = m(x),m(other)
    assert torch.equal(a[[0,2,3]], b[[0,2,3]]) and not torch.equal(a[1], b[1])

@pytest.mark.parametrize('seed', range(3))
def test_no_token_is_thrown_away(seed):
    rng = np.random.default_rng(seed)
    lengths = [int(o) for o in rng.integers(1, 200, 40)]
    for most in (200, 256, 1000):
        for rows in (first_fit(lengths, most), packed_rows(lengths, most)):
            assert sorted(i for r in rows for i in r)==list(range(40)) and all(sum(lengths[i] for i in r)<=most for r in rows)
        assert len(packed_rows(lengths, most))<=40 and len(rows)*max(sum(lengths[i] for i in r) for r in rows)<=40*max(lengths)

def test_every_token_of_an_epoch_is_in_its_batches(toy):
    learn = learner(toy, load=dict(pack=True, batch_size=8))
    coder = chat_coder(learn.spec)
    want = sorted(map(tuple, coder.conversations(learn.spec.rows[learn.spec.rows.split=='train'])))
    batches = list(learn.dls.train)
    assert sorted(tuple(ids) for x,_ in batches for ids,_,_ in chat._apart(x))==want
    assert sum(int((y!=-100).sum()) for _,y in batches)==sum(len(o.learned) for o in coder.conversations(learn.spec.rows[learn.spec.rows.split=='train']))
    assert all(x['input_ids'].shape[1]<=coder.max_length for x,_ in batches) and sum(x['input_ids'].shape[0] for x,_ in batches)<sum(len(y) for _,y in batches)

def test_packing_changes_nothing_that_is_learned(toy):
    "Whole fits, live and with recomputed activations"
    def run(pack, freeze=None, again=False):
        learn = learner(toy, load=dict(pack=pack, batch_size=8), freeze=freeze)
        if again: checkpoint_activations(learn)
        learn.fit(2, 3e-3)
        return weights(learn),learn.history[-1]
    (plain,h),(packed,hp) = run(False),run(True)
    assert (plain-packed).abs().max()<1e-4 and hp['valid_loss']==pytest.approx(h['valid_loss'], rel=1e-4) and hp['train_loss']==pytest.approx(h['train_loss'], rel=1e-4)
    assert (run(True, 'body')[0]-run(False, 'body')[0]).abs().max()<1e-4
    assert (run(True, again=True)[0]-packed).abs().max()<1e-4

def test_packed_fits_from_the_cache(toy):
    "The frozen part is computed for each conversation by itself, and the fit is the one without packing"
    def run(pack):
        learn = learner(toy, load=dict(pack=pack))
        learn.fit_head(2, 3e-3)
        return weights(learn),learn.cached_groups
    (plain,_),(packed,cached) = run(False),run(True)
    assert torch.equal(plain, packed) and set(cached)=={'embeddings','layers.0'}

def test_evaluation_never_packs(toy):
    learn = learner(toy, load=dict(pack=True, batch_size=8))
    assert learn.dls.train.pack and not learn.dls.valid.pack and not learn.dls.train.new(shuffle=False, drop_last=False).pack
    assert 'conversation' in learn.dls.train.one_batch()[0] and 'conversation' not in learn.dls.valid.one_batch()[0]
    plain = evaluate(learner(toy), 'train')
    assert evaluate(learn, 'train').metrics==pytest.approx(plain.metrics, rel=1e-6)

def test_packed_rows_are_shown_one_by_one(toy, capsys):
    dls = learner(toy, load=dict(pack=True, batch_size=8)).dls
    capsys.readouterr()
    dls.show_batch(max_n=3)
    said = capsys.readouterr().out
    assert said.count('<|im_start|>user')==said.count('<|im_end|>⟧')==3

def test_what_cannot_be_packed_is_refused(toy, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="pack='yes': valid is True"): learner(toy, load=dict(pack='yes'))
    from transformers import MistralConfig, MistralForCausalLM
    coder,folder = coder_of(toy),tmp_path/'windows'
    MistralForCausalLM(MistralConfig(vocab_size=len(coder.tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16,
                                     max_position_embeddings=256, sliding_window=64)).save_pretrained(folder)
    coder.tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match='windows of 64 tokens, rows have up to 256'): learner(toy, load=dict(pack=True, checkpoint=str(folder)))
    learner(toy, load=dict(pack=True, checkpoint=str(folder), max_length=64))
    monkeypatch.setattr(causal_model, '_reading', causal_alone)
    with pytest.raises(CheckpointError, match='does not read conversations that share a row'): learner(toy, load=dict(pack=True))
    learner(toy)
