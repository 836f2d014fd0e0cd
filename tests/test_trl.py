"The same rows, the same labels and the same loss as TRL's `SFTTrainer`, but for the line break behind a turn, which TRL trains and nothing ever writes"
import numpy as np, pandas as pd, pytest, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from sft_nb.data.chat import chat_coder
from sft_nb.data.load import load_data
from sft_nb.models.causal_model import answer_losses
from sft_nb.tasks.small_nets import CHATML
from sft_nb.tasks.toys import toy_answers
from sft_nb.training.learner import sft_learner

trl,datasets = pytest.importorskip('trl'),pytest.importorskip('datasets')
pytestmark = pytest.mark.usefixtures('home', 'one_thread')

def user(text): return dict(role='user', content=text)
def assistant(text): return dict(role='assistant', content=text)
TALKS = [[user('What color is snow?'), assistant('white'), user('and of coal'), assistant('black')], [dict(role='system', content='be brief'), user('one'), assistant('two')],
         [user('tell me a tale'), assistant('a long one, with  two spaces\nand a line'), user('12'), assistant('13')], [user('sky?'), assistant('blue')]]
# The same text as ChatML, with the places of answers marked for TRL
MARKED = ("{%- for m in messages -%}{{ '<|im_start|>'+m['role']+'\\n' }}{%- if m['role']=='assistant' -%}{% generation %}{{ m['content']+'<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
          "{%- else -%}{{ m['content']+'<|im_end|>\\n' }}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}")

@pytest.fixture(scope='module')
def toy(tmp_path_factory): return toy_answers(tmp_path_factory.mktemp('toy'))

def trainer(toy, rows, folder, template=CHATML, **kw):
    "An `SFTTrainer` over rows, which it has made into tokens and labels"
    tok = AutoTokenizer.from_pretrained(toy['checkpoint'])
    tok.chat_template = template
    args = trl.SFTConfig(str(folder), **{**dict(max_length=256, report_to=[], use_cpu=True, disable_tqdm=True, gradient_checkpointing=False, bf16=False), **kw})
    return trl.SFTTrainer(AutoModelForCausalLM.from_pretrained(toy['checkpoint'], dtype=torch.float32), args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tok)

def unbroken(rows, end):
    "(tokens, labels) of TRL's rows, without what is behind the end of the last answer, and with nothing learned behind an end"
    out = []
    for ids,labels in rows:
        last = max(i for i,t in enumerate(ids) if t==end)
        out.append((ids[:last+1], [-100 if i and ids[i-1]==end else y for i,y in enumerate(labels[:last+1])]))
    return out

def theirs(t): return [(o['input_ids'], o['labels']) for o in t.train_dataset]

def ours(toy, rows, **kw):
    "(tokens, labels) of our rows, and their learner"
    dls = load_data('chat', pd.DataFrame(rows).assign(split=['train']*(len(rows)-1)+['valid']), checkpoint=toy['checkpoint'], **kw)
    items = chat_coder(dls.sft).conversations(dls.sft.rows)
    return [(list(o), [t if i in set(o.learned) else -100 for i,t in enumerate(o)]) for o in items],sft_learner(dls)

def trl_loss(t, rows):
    "What TRL's trainer computes for some tokens and labels"
    x = t.data_collator([dict(input_ids=ids, labels=labels) for ids,labels in rows])
    t.model.eval()
    with torch.no_grad(): return float(t.compute_loss(t.model, dict(x)))

def our_loss(learn):
    ev = answer_losses(learn.model, learn.spec, learn.spec.rows, 3)
    return float((ev.loss*ev.learned).sum()/ev.learned.sum())

def prompts(table): return [dict(prompt=[user(p)], completion=[assistant(c)]) for p,c in zip(table.prompt, table.completion)]

def agree(toy, tmp_path, rows, mine, template=CHATML, load=None, **kw):
    t = trainer(toy, rows, tmp_path/'trl', template, **kw)
    got,learn = ours(toy, mine, **(load or {}))
    end = chat_coder(learn.spec).end_id
    assert unbroken(theirs(t), end)==got
    assert abs(trl_loss(t, unbroken(theirs(t), end))-our_loss(learn))<2e-6
    return t,got,learn

def test_prompts_and_completions_as_messages(toy, tmp_path):
    table = pd.read_csv(toy['source'])
    t,got,_ = agree(toy, tmp_path, prompts(table), table.to_dict('records'))
    assert all(len(a[0])==len(b[0])+1 and a[1][-1]!=-100 for a,b in zip(theirs(t), got))

def test_prompts_and_completions_as_texts(toy, tmp_path):
    "TRL renders no template then; ours is the plain one, which puts a line break behind the prompt"
    table = pd.read_csv(toy['source'])
    agree(toy, tmp_path, [dict(prompt=p+'\n', completion=c) for p,c in zip(table.prompt, table.completion)], table.to_dict('records'), load=dict(template='plain'))

def test_conversations_of_several_turns(toy, tmp_path):
    t,got,_ = agree(toy, tmp_path, [dict(messages=o) for o in TALKS], [dict(messages=o) for o in TALKS], MARKED, assistant_only_loss=True)
    assert sum(y!=-100 for y in got[0][1])>2 and theirs(t)[0][1][-1]==-100

def test_the_last_turn_alone(toy, tmp_path):
    agree(toy, tmp_path, [dict(prompt=o[:-1], completion=o[-1:]) for o in TALKS], [dict(messages=o) for o in TALKS], load=dict(train_on='last'))

def test_rows_that_are_cut(toy, tmp_path):
    rows = [dict(prompt='one', completion='two '*60), dict(prompt='two', completion='three'), dict(prompt='three', completion='four')]
    t = trainer(toy, prompts(pd.DataFrame(rows)), tmp_path/'trl', max_length=60)
    got,learn = ours(toy, rows, max_length=60)
    assert theirs(t)[0]==got[0] and len(got[0][0])==60
    same = [got[0], *unbroken(theirs(t)[1:], chat_coder(learn.spec).end_id)]
    assert same==got and abs(trl_loss(t, same)-our_loss(learn))<2e-6

def test_a_label_that_is_shifted_is_found(toy, tmp_path, monkeypatch):
    "One label further on for one row: neither labels nor loss are TRL's any more"
    from sft_nb.data import chat
    table = pd.read_csv(toy['source'])
    t,got,learn = agree(toy, tmp_path, prompts(table), table.to_dict('records'))
    right,whole = our_loss(learn),chat._chat_tokens
    def shifted(ids, prompt, learned, limit):
        out = whole(ids, prompt, learned, limit)
        if out.learned: out.learned = [out.learned[0]-1, *out.learned[1:]]
        return out
    monkeypatch.setattr(chat, '_chat_tokens', shifted)
    wrong,learn = ours(toy, table.to_dict('records'))
    assert wrong!=unbroken(theirs(t), chat_coder(learn.spec).end_id) and abs(our_loss(learn)-right)>1e-4

