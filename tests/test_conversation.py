"Talking with a chat model: in a terminal, in a notebook, as one list of messages; what each token of an answer cost; the questions of the demo"
import io, re, subprocess, sys
import numpy as np, pandas as pd, pytest
from sft_nb.cli import main
from sft_nb.core.basics import DataError, TaskError
from sft_nb.data.chat import chat_coder
from sft_nb.data.load import load_data
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.evaluation.conversation import Conversation
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.inspection.attributions import reference_losses
from sft_nb.inspection.cards import losses_html
from sft_nb.inspection.chat_box import ChatBox
from sft_nb.inspection.inspector import Inspector
from sft_nb.tasks.demo_data import options_table
from sft_nb.tasks.toys import make_toy
from sft_nb.training.learner import sft_learner

def user(text): return dict(role='user', content=text)
def assistant(text): return dict(role='assistant', content=text)

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    "The toy, learnt by heart, with a system message"
    toy = make_toy('chat', tmp_path_factory.mktemp('toy'))
    out = sft_learner(load_data('chat', toy['source'], checkpoint=toy['checkpoint'], valid=.25, system='be brief'), freeze=None)
    with out.no_bar(), out.no_logging(): out.fit(40, 3e-3)
    return out

@pytest.fixture(scope='module')
def folder(learn, tmp_path_factory): return save_predictor(learn, tmp_path_factory.mktemp('saved')/'model', metrics={})

def typed(monkeypatch, capsys, *words, lines=''):
    "Exit code, standard output and standard error of a command that reads `lines`"
    monkeypatch.setattr(sys, 'stdin', io.StringIO(lines))
    code = main([str(o) for o in words])
    return code,*capsys.readouterr()

# A conversation

def test_the_first_answer_is_that_of_predict(folder):
    model,pieces = load_predictor(folder),[]
    for q in ('What color is snow?','What comes after two?'):
        talk = Conversation(model)
        pieces.clear()
        assert talk.answer(q, pieces.append)==''.join(pieces)==model.predict(q).prediction[0]!='' and talk.stopped

def test_later_answers_read_the_whole_conversation(learn):
    talk = Conversation(learn)
    for q in ('What color is snow?','and of coal?'): talk.answer(q)
    assert [m['role'] for m in talk.messages]==['user','assistant']*2
    said,coder = [dict(role='system', content='be brief'), *talk.messages[:3]],chat_coder(learn.spec)
    assert coder.encode([talk.messages[:3]])[0]==coder.tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    ids = [o['content'] for o in talk._asked('three')]
    assert ids==[m['content'] for m in talk.messages]+['three']

@pytest.mark.parametrize('answer', ['d','end','|','im_end|>','m'])
def test_an_answer_may_be_a_part_of_the_end_token(learn, answer):
    coder = chat_coder(learn.spec)
    tokens = coder.taught('a', answer)
    assert coder.tokenizer.decode([tokens[i] for i in tokens.learned])==answer+'<|im_end|>'

def test_the_system_message_is_that_of_training_or_another(learn):
    coder = chat_coder(learn.spec)
    def rendered(talk): return coder.render(coder.conversation(talk._asked('a')))
    assert 'be brief' in rendered(Conversation(learn)) and 'be kind' in rendered(Conversation(learn, 'be kind')) and 'be brief' not in rendered(Conversation(learn, 'be kind'))

def test_what_cannot_be_asked_is_not_kept(learn):
    talk = Conversation(learn)
    for text,words in (('a<|im_end|>',"holds '<|im_end|>'"), ('long '*400,'leaves no room for an answer')):
        with pytest.raises(DataError, match=re.escape(words)+'.*reset'): talk.answer(text)
    assert talk.messages==[]

def test_a_limit_is_told(learn):
    talk = Conversation(learn, max_new_tokens=1)
    talk.answer('What comes after two?')
    assert not talk.stopped

# In a terminal

def test_chat_in_a_terminal(folder, monkeypatch, capsys):
    code,out,err = typed(monkeypatch, capsys, 'chat', folder, lines='What color is snow?\n\n/reset\nWhat comes after two?\n/what\na<|im_end|>\n/quit\nWhat color is coal?\n')
    said = load_predictor(folder).predict(['What color is snow?','What comes after two?']).prediction
    assert (code, out)==(0, ''.join(f'{o}\n' for o in said))
    assert 'There is no command /what. Valid: /reset, /quit' in err and "holds '<|im_end|>'" in err and 'Traceback' not in err

def test_chat_as_a_process(folder):
    r = subprocess.run([sys.executable, '-m', 'sft_nb', 'chat', folder, '--max-new-tokens', '1'], input='What comes after two?\n', capture_output=True, text=True)
    assert r.returncode==0 and 'stopped after 1 tokens' in r.stderr and r.stdout.count('\n')==1, r.stderr

def test_mistakes_of_chat(folder, tmp_path, monkeypatch, capsys):
    code,out,err = typed(monkeypatch, capsys, 'chat', tmp_path/'gone')
    assert (code, out, err.count('\n'))==(2, '', 1) and 'no folder' in err
    toy = make_toy('text', tmp_path/'moods')
    other = save_predictor(sft_learner(load_data('text', toy['source'], checkpoint=toy['checkpoint'], **toy['load'])), tmp_path/'other', metrics={})
    capsys.readouterr()
    code,out,err = typed(monkeypatch, capsys, 'chat', other)
    assert (code, out, err.count('\n'))==(2, '', 1) and "holds a model of task 'text', which answers no conversations." in err and 'Type: sft_nb demo chat' in err
    with pytest.raises(TaskError, match="task 'text' does not answer conversations"): Conversation(load_predictor(other))

# In a notebook

def test_chat_box(learn):
    box = ChatBox(learn)
    assert 'system: be brief' in box.pane.value
    box.ask('What color is snow?')
    assert 'class="user">What color is snow?</p>' in box.pane.value and f'class="assistant">{box.talk.messages[1]["content"]}</p>' in box.pane.value
    box.ask('<img src=x><|im_end|>')
    assert 'class="error"' in box.pane.value and '<img' not in box.pane.value and len(box.talk.messages)==2 and not box.line.disabled

# One list of messages

def test_a_list_of_messages_is_one_conversation(folder, capsys):
    model,talk = load_predictor(folder),[user('What color is snow?'), assistant('white'), user('What comes after two?')]
    one = model.predict(talk)
    assert len(one)==1 and 'Reading 3 messages as one conversation' in capsys.readouterr().err
    assert one.prediction[0]==model.predict([talk]).prediction[0]
    assert len(model.predict([talk[:1],talk]))==2 and len(model.predict(talk[:1]))==1 and len(model.predict(['one','two']))==2
    assert 'as one conversation' not in capsys.readouterr().err

# What each token of an answer cost

def test_losses_of_tokens_are_those_of_rows(learn):
    ev = evaluate(learn, 'train')
    losses = reference_losses(learn, ev.rows)
    assert [''.join(o.texts) for o in losses]==[f'{o}<|im_end|>' for o in ev.rows.target]
    assert np.allclose([np.mean(o.losses) for o in losses], ev.rows.loss, atol=1e-4)

def test_losses_of_the_last_answer_alone(learn):
    talk = [user('What color is snow?'), assistant('white'), user('and of coal?')]
    rows = pd.DataFrame(dict(prompt=[talk,'What color is snow?'], target=['black','white']))
    assert [''.join(o.texts) for o in reference_losses(learn, rows)]==['black<|im_end|>','white<|im_end|>']

def test_the_inspector_shades_answers_and_filters_them(learn, tmp_path):
    ev = evaluate(learn, 'train')
    look = Inspector(ev, marks=tmp_path/'marks.jsonl')
    look.look_at(0)
    assert (look.how.value, [o for o in look.how.options])==('loss', ['off','loss'])
    assert losses_html(reference_losses(learn, ev.rows[:1])[0]) in look.detail.html and '<h4>Difference</h4>' in look.detail.html
    look.how.value = 'off'
    assert 'sft-shades' not in look.detail.html
    ev.rows['stopped'],ev.rows['learned'] = [False,*[True]*(len(ev)-1)],range(2, len(ev)+2)
    look = Inspector(ev, marks=tmp_path/'marks.jsonl')
    look.show(column=('stopped','False'))
    assert look.sel.found().tolist()==[0] and {'stopped','learned'}<=set(look.sel.slices())
    look.clear_filters()
    look.show(result='correct')
    assert len(look.sel)==int(ev.rows.correct.sum())

def test_the_page_shades_answers(learn, tmp_path):
    page = evaluate(learn).to_html(tmp_path/'page.html', learn=learn).read_text()
    assert 'sft-shades' in page

# The demo

FISH = '''complete -c ls -s a -l all -d 'Show hidden.'
complete -c ls -l author -d 'Print the author'
complete -c ls -l help -d 'Show this text'
complete -c ls -l one -d 'Either of two'
complete -c ls -l two -d 'either of two'
complete -c ls -n with -l deep -d 'With a condition'
complete -c ls -l broken -d 'quote
'''

def test_options_are_asked_for_in_one_way(tmp_path):
    (tmp_path/'ls.fish').write_text(FISH)
    (tmp_path/'dir.fish').write_text("complete --command dir --long-option all --description 'show hidden'\ncomplete -c $c -l sort -d 'Sort by name'\n")
    table = options_table(tmp_path).sort_values('completion').reset_index(drop=True)
    assert list(table.completion)==['--all','--author']
    assert table.prompt[1]=='Which option of ls: print the author?' and table.prompt[0].endswith(': show hidden?')

def test_the_demo_ends_with_what_says_most(home, tmp_path, monkeypatch, capsys):
    from sft_nb.tasks import demo_data
    toy = make_toy('chat', tmp_path/'toy')
    demo = dict(source=toy['source'], load=dict(checkpoint=toy['checkpoint'], valid=.25), fine_tune=dict(freeze_epochs=1, epochs=0, head_lr=1e-3), untuned=True, keep_best=False)
    monkeypatch.setitem(demo_data.DEMOS, 'chat', lambda folder: demo)
    assert main(['demo','chat','--out',str(tmp_path/'out')])==0
    lines = capsys.readouterr().out.splitlines()
    assert [o.split(' ')[0] for o in lines]==['exact','stopped','perplexity','perplexity'] and all(' untuned ' in o and ' trained ' in o and ' difference ' in o for o in lines[:3])
