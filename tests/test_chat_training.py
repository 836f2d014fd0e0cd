"Training of the task `chat`: packed is separate, batches and processes change nothing, killed runs go on, adapters merge into what they were"
import json, os, subprocess, sys
from contextlib import nullcontext
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from sft_nb.core.basics import CheckpointError, DataError
from sft_nb.data import chat
from sft_nb.data.chat import ChatCoder, chat_coder, first_fit, learned_labels, packed_rows
from sft_nb.data.load import load_data
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.models import causal_model
from sft_nb.models.causal_model import CausalModel
from sft_nb.tasks.toys import toy_answers
from sft_nb.training.adapters import add_adapter, merge_adapter, save_adapter
from sft_nb.training.cache import frozen_cache
from sft_nb.training.callbacks import Accumulate, checkpoint_activations
from sft_nb.training.learner import sft_learner
from sft_nb.training.resume import Resume

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
@pytest.mark.parametrize('wrong,name', [(causal_alone, 'llama'), (causal_alone, 'qwen2'), (causal_alone, 'gpt2'), (positions_run_on, 'gpt2')])
def test_a_wrong_mask_is_found(toy, monkeypatch, wrong, name, attention):
    "Rows that see each other, or positions that run on, cost and learn something else"
    monkeypatch.setattr(causal_model, '_reading', wrong)
    m,coder = network(toy, name, attention)
    (scores,_,grads),(packed,_,pgrads),y = both(m, coder, conversations(coder, toy))
    assert (scores-packed)[y!=-100].abs().max()>1e-2*scores.abs().max() and (grads-pgrads).norm()>1e-2*grads.norm()

def test_an_edit_of_one_conversation_leaves_its_neighbors(toy):
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
    with pytest.raises(DataError, match="pack must be True .*, got 'yes'"): learner(toy, load=dict(pack='yes'))
    from transformers import MistralConfig, MistralForCausalLM
    coder,folder = coder_of(toy),tmp_path/'windows'
    MistralForCausalLM(MistralConfig(vocab_size=len(coder.tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16,
                                     max_position_embeddings=256, sliding_window=64)).save_pretrained(folder)
    coder.tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match='windows of 64 tokens, rows have up to 256'): learner(toy, load=dict(pack=True, checkpoint=str(folder)))
    learner(toy, load=dict(pack=True, checkpoint=str(folder), max_length=64))
    monkeypatch.setattr(causal_model, '_reading', causal_alone)
    with pytest.raises(CheckpointError, match='gives conversations that share a row other scores'): learner(toy, load=dict(pack=True))
    learner(toy)

# From the cache, in two processes, killed

def test_fits_from_the_cache_are_live_fits(toy):
    "The upper part on packed and on plain batches, with accumulated steps"
    def run(cached, **load):
        learn = learner(toy, load=load)
        with frozen_cache(learn) if cached else nullcontext(): learn.fit(2, 3e-3, cbs=Accumulate(6))
        return weights(learn),learn.history[-1]
    for load in ({}, dict(pack=True), dict(batch_size=3)):
        (live,h),(cached,hc) = run(False, **load),run(True, **load)
        assert (live-cached).abs().max()<1e-5 and hc['valid_loss']==pytest.approx(h['valid_loss'], abs=1e-5)
        assert [hc[k] for k in ('perplexity','token_accuracy')]==pytest.approx([h[k] for k in ('perplexity','token_accuracy')], rel=1e-5)

def test_numbers_do_not_depend_on_batches_or_accumulation(toy):
    "Nothing is learned: the loss of the training rows and of the others is one number, whichever come together"
    def run(batch_size, **load):
        learn = learner(toy, load=dict(batch_size=batch_size, **load), freeze=None)
        learn.fit(1, 0., wd=0., cbs=Accumulate(8))
        return [learn.history[-1][k] for k in ('valid_loss','perplexity','token_accuracy')]
    seen = [run(1), run(3), run(32), run(32, pack=True)]
    assert all(o==pytest.approx(seen[0], rel=1e-5) for o in seen)

@pytest.fixture
def shared(tmp_path, monkeypatch):
    "Runs of several processes, as `test_distributed` has them"
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import shared
    for k in ('SFT_NB_HOME', 'SFT_NB_TIMEOUT'): monkeypatch.setenv(k, '')
    def run(name, n, **how):
        found = shared.run('chat', tmp_path, name, n, **how)
        assert not any(found['codes']), '\n'.join(e for _,e in found['said'])
        return found
    return run

def numbers(found, rank=0): return {k:v for k,v in found['left'][rank]['history'][-1].items() if isinstance(v, float)}

@pytest.mark.parametrize('how', [dict(way='live', batch_size=3, accumulate=True), dict(way='live', batch_size=6, load=dict(pack=True)), dict(way='head', batch_size=4)], ids=str)
def test_two_processes_train_as_one(shared, how):
    one,two = shared('one', 1, **how),shared('two', 2, **how)
    assert numbers(two)==pytest.approx(numbers(one), abs=1e-4) and numbers(two, 1)==numbers(two) and {'perplexity','token_accuracy','exact'}<=set(numbers(one))
    assert all(torch.equal(two['weights'][1][k], v) for k,v in two['weights'][0].items())
    assert max((one['weights'][0][k]-v).abs().max().item() for k,v in two['weights'][0].items())<1e-4

def test_two_processes_count_every_token_once(shared):
    found = [numbers(shared(f'{n}-{size}', n, way='still', batch_size=size)) for n,size in ((1, 1), (2, 2), (2, 3), (2, 32))]
    for k in ('valid_loss','perplexity','token_accuracy'): assert [o[k] for o in found]==pytest.approx([found[0][k]]*4, rel=1e-5)

def test_killed_runs_end_with_the_same_weights(tmp_path):
    "SIGKILL between stages, in the writing of a state, after steps and at random moments"
    script = Path(__file__).with_name('killed.py')
    r = subprocess.run([sys.executable, script, 'chat', tmp_path, '6', '0'], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1'})
    assert not r.returncode, r.stderr
    out = json.loads(r.stdout.splitlines()[-1])
    assert out['kills']==6 and out['middle']>=2 and out['equal']==out['runs']>0

def test_a_packed_run_goes_on_where_it_was(toy, tmp_path):
    class Stop(Callback):
        left = None
        def before_batch(self):
            if self.training and Stop.left is not None:
                Stop.left -= 1
                if Stop.left==0: raise KeyboardInterrupt
    def run(folder=None):
        learn = learner(toy, load=dict(pack=True))
        learn.fine_tune(2, 3e-3, freeze_epochs=1, cbs=[Stop(), *([Resume(folder, every=1)] if folder else [])])
        return weights(learn)
    whole,Stop.left = run(),8
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'run')
    Stop.left = None
    assert torch.equal(whole, run(tmp_path/'run'))

# Adapters

@pytest.mark.parametrize('kind', ['lora', 'dora', 'ia3'])
def test_merged_is_unmerged_and_opens_elsewhere(toy, tmp_path, kind):
    peft = pytest.importorskip('peft')
    learn = add_adapter(learner(toy), kind)
    assert not any('embed' in n or 'lm_head' in n for n in learn.model.adapter.layers)
    learn.fit(3, 2e-2)
    x,_ = learn.dls.valid.one_batch()
    net = learn.model.eval().net
    def logits(net, x=x):
        with torch.no_grad(): return net(input_ids=x['input_ids'], attention_mask=x['attention_mask'], use_cache=False).logits[x['attention_mask'].bool()]
    before = logits(AutoModelForCausalLM.from_pretrained(toy['checkpoint']).eval())
    tuned = logits(net)
    assert (tuned-before).abs().max()>1e-2
    answers = evaluate(learn).rows.prediction.tolist()
    save_adapter(learn, tmp_path/'adapter')
    base = AutoModelForCausalLM.from_pretrained(toy['checkpoint'])
    opened = peft.PeftModel.from_pretrained(base, tmp_path/'adapter').eval()
    assert (logits(opened)-tuned).abs().max()<=1e-5 and base.get_input_embeddings().weight is base.get_output_embeddings().weight
    folder = save_predictor(learn, tmp_path/'merged')
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (logits(plain)-tuned).abs().max()<=1e-5 and plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    with safe_open(folder/'model.safetensors', 'pt') as f: assert 'lm_head.weight' not in f.keys() and not any('lora' in k or 'ia3' in k for k in f.keys())
    assert plain.config.vocab_size==base.config.vocab_size and plain.config.tie_word_embeddings
    assert load_predictor(folder).predict(list(evaluate(learn).rows.prompt)).prediction.tolist()==answers
    merge_adapter(learn)
    assert (logits(learn.model.eval().net)-tuned).abs().max()<=1e-5 and learn.model.net.lm_head.weight is learn.model.net.model.embed_tokens.weight

def test_tied_weights_take_no_adapter(toy):
    from sft_nb.training.adapters import AdapterError
    for name in ('lm_head', 'embed_tokens'):
        with pytest.raises(AdapterError, match='takes no adapter'): add_adapter(learner(toy), targets=[name])

def test_adapters_train_on_packed_batches(toy):
    def run(pack):
        learn = add_adapter(learner(toy, load=dict(pack=pack, batch_size=8)))
        learn.fit(2, 1e-2)
        return weights(learn)
    assert (run(True)-run(False)).abs().max()<1e-4
