"Texts as people have them: invisible ones, letters that the tokenizer does not know, names of files, objects within rows, what is too long"
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from sft_nb.core.basics import DataError
from sft_nb.data.labels import is_blank
from sft_nb.data.load import load_data
from sft_nb.data.problems import BadRows
from sft_nb.data.task import get_task
from sft_nb.data.texts import _unknown_id
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.models.seq2seq import decode_translations, Generated
from sft_nb.tasks.small_nets import small_marian
from sft_nb.training.learner import sft_learner
from sft_nb.tasks.toys import make_toy

@pytest.fixture(scope='module')
def bert(tmp_path_factory): return make_toy('text', tmp_path_factory.mktemp('net'))['checkpoint']

@pytest.fixture(scope='module')
def marian(tmp_path_factory): return str(small_marian(['the red house','la maison rouge'], tmp_path_factory.mktemp('net')/'marian', size=40, width=32, layers=1))

DAYS = pd.DataFrame(dict(text=[f'fine day {i}' for i in range(6)]+[f'sad day {i}' for i in range(6)], label=['glad']*6+['sad']*6))

@pytest.fixture(scope='module')
def days(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp('days')/'m'
    save_predictor(sft_learner(load_data('text', DAYS, checkpoint=bert)), folder, metrics={})
    return load_predictor(folder, device='cpu')

UNSEEN = ['\u200b', '\ufeff', '\xad\u2060', '\x00\x07', '\u202e', '\u3164', '\u200d\ufe0f', '\u2800 \t']

@pytest.mark.parametrize('text', UNSEEN)
def test_invisible_text_is_empty(bert, marian, days, tmp_path, text):
    assert is_blank(text) and not is_blank(text+'x')
    (tmp_path/'d.jsonl').write_text(''.join(json.dumps(dict(text=t, label=l))+'\n' for t,l in zip([*DAYS.text, text], [*DAYS.label, 'sad'])))
    for source,row in ((pd.concat([DAYS, pd.DataFrame(dict(text=[text], label=['sad']))], ignore_index=True), 'row 12'), (tmp_path/'d.jsonl', 'd.jsonl line 13')):
        with pytest.raises(BadRows, match=f'{row}: empty text'): load_data('text', source, checkpoint=bert)
        with pytest.raises(BadRows, match=f'{row}: empty text'): evaluate(days, source)
    with pytest.raises(DataError, match='empty text'): days.predict([text])
    assert len(days.predict(['fine day', text], bad='skip'))==1
    pairs = pd.DataFrame(dict(source=['the red house']*8+[text], target=['la maison rouge']*9))
    with pytest.raises(BadRows, match='row 8: empty source'): load_data('translation', pairs, checkpoint=marian)

def test_what_can_be_seen_is_no_empty_text(): assert not any(map(is_blank, ('\U0001f600', '.', '\u0301', 'a\u200b', '\u0e01', 0, False)))

def test_unknown_tokens_are_said(bert, days, capsys):
    odd = DAYS.assign(text=['\u4eca\u5929', '\U0001f600', *['fine day']*4, '\U0001f621', *['sad day']*5])
    load_data('text', odd, checkpoint=bert)
    said = capsys.readouterr().err
    assert '3 texts are nothing else (row 0, row 1, row 6)' in said and 'in 3 of 12 texts become [UNK]' in said and 'xlm-roberta-base' in said
    assert "1 of 12 texts become the same tokens as another text that has another label, for instance '\U0001f600' (glad) and '\U0001f621' (sad)" in said
    load_data('text', DAYS.assign(text=['fine day']*6+['sad day']*6), checkpoint=bert)
    assert 'Unknown' not in capsys.readouterr().err
    days.predict(['fine day', '\U0001f600'])
    assert 'in 1 of 2 texts become [UNK]' in capsys.readouterr().err

def test_a_tokenizer_without_unknown_tokens_says_nothing(bert):
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained(bert)
    assert _unknown_id(tok)==tok.unk_token_id
    tok.unk_token = tok.sep_token
    assert _unknown_id(tok) is None

def test_unknown_tokens_of_both_sides_of_a_translation(marian, capsys):
    load_data('translation', pd.DataFrame(dict(source=['the red house']*7+['\U0001f600'], target=['la maison rouge']*7+['\u4eca'])), checkpoint=marian)
    said = capsys.readouterr().err
    assert said.count('row 7)')==2 and '(sources)' in said and '(targets)' in said

def test_prediction_says_what_is_cut(days, marian, tmp_path, capsys):
    days.predict(['fine day', 'sad '*300])
    assert 'Cut 1 of 2 texts after 64 tokens, the longest has 302' in capsys.readouterr().err
    days.predict_proba(['fine day', 'sad'])
    assert 'Cut' not in capsys.readouterr().err
    evaluate(days, pd.DataFrame(dict(text=['sad '*300,'fine'], label=['sad','glad'])))
    assert 'Cut 1 of 2 texts' in capsys.readouterr().err
    list(days.stream(['sad '*300]*3, part=2))
    assert capsys.readouterr().err.count('Cut ')==2
    learn = sft_learner(load_data('translation', pd.DataFrame(dict(source=['the red house']*8, target=['la maison rouge']*8)), checkpoint=marian))
    save_predictor(learn, tmp_path/'m', metrics={})
    capsys.readouterr()
    p = load_predictor(tmp_path/'m', device='cpu')
    for _ in range(2):
        p.predict(['the red house '*200, 'the house'])
        said = capsys.readouterr().err
        assert 'Cut 1 of 2 texts after' in said
    end = p.spec._coder[2].tokenizer.eos_token_id
    for tokens,n in (([[5,6,7],[5,end,-100]], 1), ([[5,end],[end,-100]], 0)):
        coder = p.spec._coder[2]
        coder.tally.texts,coder.tally.unfinished = 2,0
        decode_translations(p.spec, Generated(torch.tensor(tokens), torch.ones(2)))
        said = f'1 of 2 translations stop at the limit of {coder.max_target_length} tokens before their end'
        assert coder.tally.unfinished==n and any(o.startswith(said) for o in coder.remarks())==(n>0)

def test_evaluation_of_own_rows_does_not_repeat_what_loading_said(bert, capsys):
    learn = sft_learner(load_data('text', DAYS.assign(text=['sad '*300, *DAYS.text[1:]]), checkpoint=bert))
    assert 'Cut 1 of 12 texts' in capsys.readouterr().err
    for on in ('train','valid'): evaluate(learn, on)
    assert 'Cut' not in capsys.readouterr().err

def test_a_text_that_is_the_name_of_a_file(days, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('great').write_text('x')
    Path('notes.txt').write_text('fine day\nsad day\n')
    Path('days').mkdir()
    Path('mails').mkdir()
    Path('mails/1.txt').write_text('a sad day')
    DAYS.to_csv('days.csv', index=False)
    assert days.predict('great')['item'].tolist()==['great']
    assert "'great' is read as a text, though a file has this name" in capsys.readouterr().err
    assert (days.predict('days')['item'].tolist(), len(days.predict('mails')), len(days.predict('days.csv')), len(days.predict('see days.csv')))==(['days'], 1, 12, 1)
    assert "'mails' is read as a folder of text files; pass ['mails'] (--as-items)" in capsys.readouterr().err
    assert [days.predict([o])['item'].tolist() for o in ('mails','days.csv','notes.txt','great')]==[['mails'],['days.csv'],['notes.txt'],['great']]
    with pytest.raises(DataError, match=r"notes.txt is a text file. Pass \['notes.txt'\] for the text itself"): days.predict('notes.txt')
    with pytest.raises(DataError, match='great is not a table that can be read'): days.predict(Path('great'))
    assert len(days.predict('~ a day ~'))==1

def test_the_command_line_takes_texts_that_are_names_of_files(days, tmp_path):
    (tmp_path/'great').write_text('x')
    (tmp_path/'notes.txt').write_text('fine day\n\u200b\nsad day\n')
    def lines(*items):
        env = {**os.environ, 'PYTHONPATH':os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')])}
        r = subprocess.run([sys.executable, '-m', 'sft_nb', 'predict', str(days.folder), '--device', 'cpu', *items], capture_output=True, text=True, cwd=tmp_path, env=env)
        assert r.returncode==0, r.stderr
        return [o.split(',')[0] for o in r.stdout.splitlines()[1:]]
    assert (lines('great'), lines('notes.txt'), lines('notes.txt', '--as-items'))==(['great'], ['fine day','sad day'], ['notes.txt'])

PAIRS = [dict(id=i, translation=dict(en=f'the red house {i}', fr=f'la maison rouge {i}')) for i in range(8)]

def nested(kind, folder):
    if kind=='jsonl': (folder/'d.jsonl').write_text(''.join(json.dumps(o)+'\n' for o in PAIRS))
    if kind=='json': (folder/'d.json').write_text(json.dumps(PAIRS))
    if kind=='parquet': pd.DataFrame(PAIRS).to_parquet(folder/'d.parquet')
    if kind=='dataset': return pytest.importorskip('datasets').Dataset.from_list(PAIRS)
    return {'frame':pd.DataFrame(PAIRS), 'list':PAIRS}.get(kind, folder/f'd.{kind}')

@pytest.mark.parametrize('lazy', [None, True])
@pytest.mark.parametrize('kind', ['jsonl','json','parquet','dataset','frame','list'])
def test_objects_within_rows(marian, tmp_path, home, kind, lazy, capsys):
    if lazy and kind not in ('parquet','dataset'): return
    source = nested(kind, tmp_path)
    rows = load_data('translation', source, checkpoint=marian, lazy=lazy).sft.rows
    assert (list(rows.source)[3], rows.target[3], len(rows))==('the red house 3', 'la maison rouge 3', 8)
    assert 'Reading translation.en as source and translation.fr as target' in capsys.readouterr().err
    rows = load_data('translation', source, checkpoint=marian, input='translation.fr', target='translation.en', lazy=lazy).sft.rows
    assert (list(rows.source)[3], rows.target[3])==('la maison rouge 3', 'the red house 3')
    assert 'Reading' not in capsys.readouterr().err

def test_objects_within_rows_after_training(marian, tmp_path):
    learn = sft_learner(load_data('translation', PAIRS, checkpoint=marian, input='translation.fr', target='translation.en'))
    save_predictor(learn, tmp_path/'m', metrics={})
    p = load_predictor(tmp_path/'m', device='cpu')
    assert evaluate(p, nested('jsonl', tmp_path)).rows.target[3]=='the red house 3'
    assert evaluate(p, pd.DataFrame(dict(source=['la maison'], target=['the house']))).rows.target[0]=='the house'
    assert len(p.predict(pd.DataFrame(PAIRS)))==8

def test_fields_for_other_tasks(bert):
    rows = [dict(meta=dict(body=t, kind=l)) for t,l in zip(DAYS.text, DAYS.label)]
    assert load_data('text', rows, checkpoint=bert, input='meta.body', target='meta.kind').sft.vocab==['glad','sad']
    inside = [dict(data=dict(text=t, label=l)) for t,l in zip(DAYS.text, DAYS.label)]
    assert load_data('text', inside, checkpoint=bert).sft.vocab==['glad','sad']
    with pytest.raises(DataError, match="no column 'text' for the text. Columns: meta, meta.body, meta.kind"): load_data('text', pd.DataFrame(rows), checkpoint=bert)
    empty = [*inside, dict(data=dict(text=None, label='sad')), dict(data=None)]
    with pytest.raises(BadRows) as e: load_data('text', pd.DataFrame(empty), checkpoint=bert)
    assert [(r.row, r.problem) for r in e.value.problems.itertuples()]==[('row 12','empty text'), ('row 13','empty text'), ('row 13','empty label')]
    assert np.array_equal(load_data('text', pd.DataFrame(empty), checkpoint=bert, bad='skip').sft.rows.label, DAYS.label)
