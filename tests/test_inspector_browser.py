"The Inspector in JupyterLab and the static page, driven in Chromium; SFT_NB_SCREENSHOTS=FOLDER keeps what was seen"
import json, os
from pathlib import Path
import pytest
from playwright.sync_api import expect
from browser import chromium, faults, jupyterlab, new_page, Notebook, slow_machine
from sft_nb.data.corrections import Marks

evil = '<script>window.hacked=1</script><img src=x onerror=window.hacked=1>'

pictures = '''
import numpy as np, pandas as pd
from pathlib import Path
from PIL import Image, ImageDraw
from sft_nb.data.task import get_task
from sft_nb.evaluation.results import Evaluation
from sft_nb.inspection.inspector import Inspector
from sft_nb.inspection.attributions import explain
rng,rows,names = np.random.default_rng(0),[],['cat','dog','owl']
Path('pics').mkdir(exist_ok=True)
for i in range(60):
    t,p = names[i%3],names[(i//3)%3] if i%5==0 else names[i%3]
    im = Image.new('RGB', (64,64), tuple(int(o) for o in rng.integers(120,255,3)))
    ImageDraw.Draw(im).ellipse((10,10,54,54) if t=='cat' else (20,5,44,60), fill=dict(cat='orange',dog='saddlebrown',owl='slategray')[t])
    name = f'pics/{i:02}.png' if i!=1 else 'pics/EVIL.png'
    im.save(f'pics/{i:02}.png')
    rows.append(dict(item=name.replace('EVIL', EVIL) if i==1 else name, image=f'pics/{i:02}.png', target=t, prediction=p,
                     probability=float(rng.uniform(.4,.99)), farm='north' if i%2 else EVIL))
rows = pd.DataFrame(rows)
rows['correct'] = rows.target==rows.prediction
rows['loss'] = -np.log(np.where(rows.correct, rows.probability, (1-rows.probability)/2))
probs = np.full((60,3), .01)
for i,r in enumerate(rows.itertuples()): probs[i] = (1-r.probability)/2; probs[i,names.index(r.prediction)] = r.probability
ev = Evaluation(rows, get_task('image'), names, probabilities=probs, on='valid')
'''.replace('EVIL.png', 'evil.png').replace("'EVIL', EVIL", "'evil', EVIL")

@pytest.fixture(scope='module')
def shots(tmp_path_factory):
    folder = Path(os.environ.get('SFT_NB_SCREENSHOTS') or tmp_path_factory.mktemp('shots'))
    folder.mkdir(parents=True, exist_ok=True)
    return folder

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "(address, folder) of a JupyterLab of its own"
    folder = tmp_path_factory.mktemp('notebooks')
    with jupyterlab(folder, tmp_path_factory.mktemp('jupyter')) as address: yield address,folder

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp('browser')) as b: yield b

@pytest.fixture(scope='module')
def nb(lab, browser): return Notebook(lab, browser, 'pictures', f'EVIL = {evil!r}\n{pictures}', "look = Inspector(ev, marks='marks.jsonl', page_size=24)\nlook")

@pytest.fixture
def clean(nb):
    "The notebook without filters, on its rows"
    nb.tab('Rows')
    nb.button('Clear filters')
    expect(nb.page.locator('.sft-card[aria-current=true]')).to_have_count(0)
    expect(nb.count).to_have_text('1–24 of 60')
    yield nb
    assert nb.errors==[]

def marks(nb):
    path = nb.folder/'marks.jsonl'
    return [json.loads(o) for o in path.read_text().splitlines()] if path.exists() else []

def test_pages_and_filters(clean, shots):
    nb = clean
    expect(nb.cards).to_have_count(24)
    nb.shoot(shots/'gallery.png')
    nb.button('▶')
    expect(nb.count).to_have_text('25–48 of 60')
    nb.select('result', 'wrong')
    expect(nb.page.locator('.sft-card:not(:has(.sft-bad))')).to_have_count(0)
    expect(nb.count).to_have_text('1–8 of 8 (60 in all)')
    nb.select('target', 'cat')
    expect(nb.cards.first).to_contain_text('cat →')
    nb.search.fill('pics/15')
    nb.search.press('Enter')
    expect(nb.count).to_have_text('1–1 of 1 (60 in all)')

def test_orders_and_table(clean, shots):
    nb = clean
    nb.select('order', 'least certain first')
    expect(nb.cards.first).to_contain_text('p 0.41')
    p = [float(o.split('p ')[1].split(' ')[0]) for o in nb.page.locator('.sft-nums').all_text_contents()]
    assert p==sorted(p)
    nb.button('table')
    expect(nb.page.locator('tr[data-do]')).to_have_count(24)
    nb.shoot(shots/'table.png')
    nb.page.locator('tr[data-do]').nth(2).focus()
    nb.page.keyboard.press('Enter')
    expect(nb.page.locator('tr[data-do]').nth(2)).to_have_attribute('aria-current', 'true')
    nb.button('gallery')
    nb.select('order', 'highest loss first')

def test_confusion_filters(clean, shots):
    nb = clean
    nb.tab('Confusion')
    cell = nb.page.get_by_role('button', name='target cat, prediction dog')
    n = int(cell.inner_text())
    nb.shoot(shots/'confusion.png')
    cell.click()
    expect(nb.cards).to_have_count(n)
    expect(nb.cards.first).to_contain_text('cat → dog')

def test_confidence_and_thresholds(clean, shots):
    nb = clean
    nb.tab('Confidence')
    nb.shoot(shots/'confidence.png')
    nb.page.locator('[data-do=bin][aria-label*="0.90 to 0.95"]').click(force=True)
    expect(nb.cards.first).to_contain_text('p 0.9')
    nb.tab('Thresholds')
    expect(nb.page.get_by_text('At 0.50: precision')).to_be_visible()
    nb.select('class', 'owl')
    expect(nb.page.locator('svg[aria-label^=precision]')).to_be_visible()
    nb.select('class', 'whatever is predicted')
    nb.page.wait_for_timeout(500)
    assert nb.dropdown('class').evaluate('o => o.selectedIndex')==0
    nb.select('class', 'owl')
    nb.shoot(shots/'thresholds.png')

def test_keys_and_marks(clean, shots):
    "Keys go through the rows and mark; JupyterLab's own shortcuts stay off"
    nb = clean
    cells,before = nb.page.locator('.jp-Notebook .jp-Cell').count(),len(marks(nb))
    nb.select('marks', 'not marked')
    nb.cards.first.click()
    expect(nb.page.locator('.sft-card[aria-current=true]')).to_have_count(1)
    nb.page.keyboard.press('ArrowRight')
    expect(nb.cards.nth(1)).to_have_attribute('aria-current', 'true')
    nb.page.keyboard.press('x')
    expect(nb.said).to_contain_text('exclude')
    expect(nb.page.locator('.sft-card .sft-mark')).to_have_text('exclude')
    nb.page.keyboard.press('u')
    expect(nb.page.locator('.sft-card .sft-mark')).to_have_count(0)
    nb.page.keyboard.press('r')
    expect(nb.page.locator('.sft-card .sft-mark')).to_have_text('exclude')
    nb.page.keyboard.press('a')
    expect(nb.page.locator('.sft-card .sft-mark')).to_have_text('ambiguous')
    nb.button('Undo'); nb.button('Undo')
    expect(nb.page.locator('.sft-card .sft-mark')).to_have_count(0)
    for key in ('d','d','b','y','m','Enter'): nb.page.keyboard.press(key) # shortcuts of the notebook, with the focus on a button
    expect(nb.said).to_contain_text('undo')
    assert nb.page.locator('.jp-Notebook .jp-Cell').count()==cells
    assert [o['do'] for o in marks(nb)[before:]]==['exclude','undo','redo','ambiguous','undo','undo']

def test_marks_outlive_the_kernel(clean, shots):
    nb = clean
    nb.cards.nth(2).click()
    expect(nb.cards.nth(2)).to_have_attribute('aria-current', 'true')
    now = nb.dropdown('label').evaluate('o => o.selectedOptions[0].label')
    nb.select('label', 'owl' if now!='owl' else 'cat')
    nb.button('Relabel')
    expect(nb.said).to_contain_text('relabel')
    item = marks(nb)[-1]['item']
    nb.select('target', 'dog'); nb.button('Clear filters')
    expect(nb.page.locator('.sft-card .sft-mark')).to_contain_text('relabel')
    nb.shoot(shots/'marked.png')
    nb.restart()
    nb.run()
    nb.select('marks', 'relabel')
    expect(nb.cards).to_have_count(1)
    nb.cards.first.click()
    expect(nb.page.locator('.sft h3')).to_contain_text(item)
    nb.button('Save CSV')
    expect(nb.said).to_contain_text('corrections.csv')
    assert 'relabel' in (nb.folder/'corrections.csv').read_text()

def test_a_mark_paints_its_own_card_alone(clean):
    "Neither a mark nor a step draws another card"
    nb = clean
    nb.select('marks', 'not marked')
    nb.cards.first.click()
    expect(nb.cards.first).to_have_attribute('aria-current', 'true') # the answer to the click, thus after the page that the filter drew
    nb.page.evaluate("""() => {
      const card = o => (o.closest ? o : o.parentElement).closest('.sft-card')?.dataset.value || 'more than a card';
      window.painted = [];
      new MutationObserver(all => window.painted.push(...all.map(o => card(o.target)))).observe(document.querySelector('.sft-rows'), {childList: true, subtree: true, characterData: true});
    }""")
    nb.page.keyboard.press('x')
    expect(nb.page.locator('.sft-card .sft-mark')).to_have_text('exclude')
    nb.page.keyboard.press('ArrowRight')
    expect(nb.cards.nth(1)).to_have_attribute('aria-current', 'true')
    assert set(nb.page.evaluate('window.painted'))=={nb.cards.first.get_attribute('data-value')}
    nb.page.keyboard.press('u')
    expect(nb.page.locator('.sft-card .sft-mark')).to_have_count(0)

def test_another_writer_is_told(clean):
    "Marks of another process are on the cards and in words with the next mark, and none of either is lost"
    nb,item = clean,'pics/03.png'
    before = len(marks(nb))
    nb.cards.nth(4).click()
    expect(nb.cards.nth(4)).to_have_attribute('aria-current', 'true')
    mine = nb.page.locator('.sft h3').inner_text().split()[0]
    other = Marks(nb.folder/'marks.jsonl')
    other.mark(item, 'ambiguous')
    nb.page.keyboard.press('x')
    expect(nb.said).to_contain_text(f'{mine}: exclude; 1 mark made elsewhere: {item} ambiguous')
    nb.settled()
    other.mark(mine, 'ambiguous')
    nb.page.keyboard.press('c')
    expect(nb.said).to_contain_text('in place of ambiguous from elsewhere')
    assert [(o['do'],o['item']) for o in marks(nb)[before:]]==[('ambiguous',item),('exclude',mine),('ambiguous',mine),('clear',mine)]
    other.mark(item, 'clear')

many = """
import pandas as pd
from sft_nb.data.task import get_task
from sft_nb.evaluation.results import Evaluation
from sft_nb.inspection.inspector import Inspector
n = 200
rows = pd.DataFrame(dict(item=[f'row {i}' for i in range(n)], text=[f'text {i}' for i in range(n)], target='a', prediction=['a','b']*(n//2), probability=.9, loss=[i/n for i in range(n)][::-1], correct=[True,False]*(n//2)))
look = Inspector(Evaluation(rows, get_task('text'), ['a','b']), marks='many.jsonl')
look
"""

def test_two_hundred_marks_by_keyboard(lab, browser):
    "None is lost, in their order, also when nobody waits for an answer; they are there after the kernel is restarted"
    nb = Notebook(lab, browser, 'many', many)
    nb.cards.first.focus()
    nb.page.keyboard.press('Enter')
    expect(nb.cards.first).to_have_attribute('aria-current', 'true')
    for i in range(200): nb.page.keyboard.press('xa'[i%2]); nb.page.keyboard.press('ArrowRight')
    expect(nb.said).to_contain_text('row 199: ambiguous', timeout=slow_machine)
    said = [json.loads(o) for o in (nb.folder/'many.jsonl').read_text().splitlines()]
    assert [(o['do'],o['item']) for o in said]==[(('exclude','ambiguous')[i%2],f'row {i}') for i in range(200)]
    nb.restart(); nb.run()
    expect(nb.page.locator('.sft-card .sft-mark')).to_have_count(24)
    assert nb.errors==[]
    nb.page.close()

def test_two_tabs_and_a_second_notebook(lab, browser):
    "Two tabs of a notebook show one Inspector; another notebook on the same marks is another writer. None of the marks is lost, and who writes last is told"
    one = Notebook(lab, browser, 'tabs', many.replace('many.jsonl', 'tabs.jsonl'))
    two = one.second_tab(browser)
    one.cards.first.click()
    expect(two.cards.first).to_have_attribute('aria-current', 'true')
    one.page.keyboard.press('x')
    expect(two.page.locator('.sft-card .sft-mark')).to_have_text('exclude')
    two.cards.nth(1).click()
    two.page.keyboard.press('a')
    for tab in (one, two):
        expect(tab.page.locator('.sft-card .sft-mark')).to_have_text(['exclude','ambiguous'])
        expect(tab.said).to_have_text('row 1: ambiguous')
    other = Notebook(lab, browser, 'other', many.replace('many.jsonl', 'tabs.jsonl'))
    expect(other.page.locator('.sft-card .sft-mark')).to_have_text(['exclude','ambiguous'])
    other.cards.nth(1).click()
    other.page.keyboard.press('x')
    expect(other.said).to_have_text('row 1: exclude')
    one.page.keyboard.press('c')
    for tab in (one, two): expect(tab.said).to_have_text('row 1: clear, in place of exclude from elsewhere; 1 mark made elsewhere: row 1 exclude')
    written = [json.loads(o) for o in (one.folder/'tabs.jsonl').read_text().splitlines()]
    assert [(o['do'],o['item']) for o in written]==[('exclude','row 0'),('ambiguous','row 1'),('exclude','row 1'),('clear','row 1')]
    for tab in (one, two, other):
        assert tab.errors==[]
        tab.page.close()

def test_no_serious_fault(clean, shots):
    "axe, in every tab, as gallery and as table, in both themes"
    nb,where = clean,'.jp-OutputArea-output:has(.sft-head)'
    nb.cards.first.click()
    for theme in ('Dark','Light'):
        themed(nb, theme)
        for tab in ('Confusion','Confidence','Thresholds','Rows'):
            nb.tab(tab)
            assert faults(nb.page, where)==[], (theme, tab)
        nb.button('table')
        assert faults(nb.page, where)==[], theme
        nb.shoot(shots/f'table-{theme}.png')
        nb.button('gallery')

against = """
old = rows.copy()
for i in range(0, 60, 4): old.loc[i, 'prediction'] = names[(names.index(old.prediction[i])+1)%3]
old['correct'] = old.target==old.prediction
before = np.full((60,3), .01)
for i,r in enumerate(old.itertuples()): before[i] = (1-r.probability)/2; before[i,names.index(r.prediction)] = r.probability
other = Evaluation(old, get_task('image'), names, probabilities=before, on='valid')
"""

def themed(nb, theme):
    nb.command('apputils:change-theme', dict(theme=f'JupyterLab {theme}'))
    nb.page.wait_for_function("t => document.body.dataset.jpThemeLight === t", arg=str(theme=='Light').lower())
    nb.page.wait_for_timeout(500)

@pytest.fixture(scope='module')
def two(lab, browser):
    "A notebook that shows two models on the same rows"
    nb = Notebook(lab, browser, 'two', f'EVIL = "farm"\n{pictures}{against}', "Inspector(ev, against=other, marks='two.jsonl', page_size=12)")
    yield nb
    nb.page.close()

def test_two_models_on_the_same_rows(two, shots):
    "Both predictions on each card and in the open row; changed rows are filtered, walked through and marked by keyboard"
    nb = two
    expect(nb.page.locator('.sft-head')).to_have_count(2)
    expect(nb.page.locator('.sft-card .sft-was')).to_have_count(12)
    expect(nb.page.locator('.sft-card .sft-was').first).to_contain_text('other: ')
    choices = nb.dropdown('changed').locator('option').evaluate_all('os => os.map(o => o.label.replaceAll("\\u00a0", " "))')
    assert choices[:2]==['all','any change (15)'] and sum(int(o.split('(')[1][:-1]) for o in choices[1:] if not o.startswith('same'))==30
    for choice in choices[1:]:
        nb.select('changed', choice)
        n = int(choice.split('(')[1][:-1])
        expect(nb.count).to_contain_text(f'–{min(n, 12)} of {n}')
    nb.select('changed', 'any change (15)')
    cards = nb.cards.evaluate_all("os => os.map(o => [o.querySelector('.sft-what').textContent, o.querySelector('.sft-was b').textContent])")
    assert len(cards)==12 and all(not ours.endswith(f'→ {theirs}') for ours,theirs in cards)
    nb.cards.first.focus()
    nb.page.keyboard.press('Enter')
    expect(nb.cards.first).to_have_attribute('aria-current', 'true')
    nb.page.keyboard.press('x')
    nb.page.keyboard.press('ArrowRight')
    nb.page.keyboard.press('a')
    expect(nb.page.locator('.sft-card .sft-mark')).to_have_text(['exclude','ambiguous'])
    assert [json.loads(o)['do'] for o in (nb.folder/'two.jsonl').read_text().splitlines()]==['exclude','ambiguous']
    expect(nb.page.locator('.sft[aria-label="The open row"]')).to_contain_text('other: ')
    for theme in ('Dark','Light'):
        themed(nb, theme)
        nb.shoot(shots/f'two-{theme}.png')
        assert faults(nb.page, '.jp-OutputArea-output:has(.sft-head)')==[], theme
    assert nb.errors==[]

wide = """() => {
  const out = document.querySelector('.sft-inspector'), right = out.closest('.jp-OutputArea-output').getBoundingClientRect().right;
  const over = [...out.querySelectorAll('*')].filter(o => o.checkVisibility() && !o.closest('svg *') && o.getBoundingClientRect().right > right+1).map(o => o.outerHTML.slice(0, 120));
  return [document.documentElement.scrollWidth-innerWidth, out.scrollWidth-out.clientWidth, over];
}"""

def test_a_narrow_window(two, shots):
    "700 pixels: nothing stands over the edge, every control can be reached, the open row lies below the gallery"
    nb = two
    nb.page.set_viewport_size(dict(width=700, height=900))
    nb.page.wait_for_timeout(500)
    nb.button('Clear filters')
    room = nb.page.locator('.sft-inspector')
    for tab in ('Confusion','Confidence','Thresholds','Rows'):
        nb.tab(tab)
        nb.shoot(shots/f'narrow-{tab}.png')
        assert nb.page.evaluate(wide)==[0, 0, []], tab
    nb.button('table')
    nb.shoot(shots/'narrow-table.png')
    assert nb.page.evaluate(wide)==[0, 0, []]
    nb.button('gallery')
    nb.cards.first.focus()
    nb.page.keyboard.press('Enter')
    expect(nb.cards.first).to_have_attribute('aria-current', 'true')
    expect(nb.page.locator('.sft h3')).to_be_in_viewport()
    rows,row = (nb.page.locator(o).bounding_box() for o in ('.sft-rows', '.sft[aria-label="The open row"]'))
    assert row['y']>=rows['y']+rows['height'] and row['height']>100 and row['y']<900 # below the gallery, and to be seen without scrolling
    buttons = room.get_by_role('button').filter(visible=True)
    assert buttons.count()>20
    for i in range(buttons.count()): buttons.nth(i).click(trial=True)
    for key in ('ArrowRight','PageDown','ArrowRight'): nb.page.keyboard.press(key)
    expect(nb.count).to_have_text('13–24 of 60')
    expect(nb.cards.first).to_have_attribute('aria-current', 'true')
    nb.page.keyboard.press('ArrowRight')
    expect(nb.cards.nth(1)).to_have_attribute('aria-current', 'true')
    expect(nb.cards.nth(1)).to_be_in_viewport()
    for theme in ('Dark','Light'):
        themed(nb, theme)
        nb.shoot(shots/f'narrow-{theme}.png')
        assert faults(nb.page, '.jp-OutputArea-output:has(.sft-head)')==[], theme
    assert nb.errors==[]

def test_text_out_of_data_never_runs(clean):
    nb = clean
    nb.search.fill('script')
    nb.search.press('Enter')
    expect(nb.count).to_have_text('1–1 of 1 (60 in all)')
    nb.cards.first.click()
    expect(nb.page.locator('.sft h3')).to_contain_text('<script>')
    nb.button('table'); nb.button('gallery')
    assert nb.page.evaluate('window.hacked') is None
    assert nb.page.locator('.sft script, .sft img[src=x]').count()==0

sounds = """
import numpy as np, pandas as pd, soundfile
from sft_nb.data.task import all_tasks, get_task
from sft_nb.evaluation.results import Evaluation
from sft_nb.inspection.inspector import Inspector
said = [('the call is on hold','the call is hold'), ('please enter your number','please enter a number now'), ('goodbye','goodbye')]
for i in range(3): soundfile.write(f'{i}.wav', .4*np.sin(np.arange(24000)/16000*2*np.pi*(300+200*i)), 16000)
rows = pd.DataFrame(dict(item=[f'{i}.wav' for i in range(3)], audio=[f'{i}.wav' for i in range(3)], target=[t for t,_ in said], prediction=[p for _,p in said],
                         probability=[.5,.6,.9], loss=np.nan, correct=[t==p for t,p in said]))
ev = Evaluation(rows, get_task('speech' if 'speech' in all_tasks() else 'translation'))
look = Inspector(ev, marks='sounds.jsonl')
look
"""

def test_a_sound_is_played_and_aligned(lab, browser, shots):
    nb = Notebook(lab, browser, 'sounds', sounds)
    nb.cards.first.click()
    player = nb.page.locator('.sft audio')
    player.wait_for()
    player.evaluate('o => o.play()')
    nb.page.wait_for_function("() => document.querySelector('.sft audio').currentTime > .2")
    assert abs(player.evaluate('o => o.duration')-1.5)<.05
    assert nb.page.locator('.sft ins, .sft del').count()>0
    expect(nb.page.get_by_role('img', name='spectrogram')).to_be_visible()
    nb.shoot(shots/'sound.png')
    assert nb.errors==[]
    nb.page.close()

trained = """
from sft_nb.all import *
from sft_nb.tasks.toys import make_toy
toy = make_toy(TASK, f'toy-{TASK}')
learn = sft_learner(load_data(TASK, toy['source'], checkpoint=toy['checkpoint'], pretrained=toy.get('pretrained', True), **toy['load']))
with learn.no_bar(), learn.no_logging(): learn.fit_head(1)
"""
with_queue = """
ev = evaluate(learn)
look = Inspector(ev, learn, marks=f'{TASK}.jsonl', pool=label_queue(learn, ev.rows[list(ev.task.input_columns)]))
look
"""
shown = dict(image=['figcaption'], text=['.sft-tok'], image_text=['figcaption','.sft-tok'], speech=['audio'], translation=['h4:text("Source")','h4:text("Difference")'])

@pytest.mark.slow
@pytest.mark.parametrize('task', shown)
def test_trained_models_of_all_tasks(lab, browser, shots, task):
    "A row opened beside the model that predicted it, and the queue of unlabelled items, where a mark goes into a file of its own"
    nb = Notebook(lab, browser, f'trained-{task}', f'TASK = {task!r}\n{trained}', with_queue)
    nb.cards.first.click()
    for o in shown[task]: expect(nb.page.locator(f'.sft {o}').first).to_be_visible(timeout=slow_machine)
    nb.shoot(shots/f'trained-{task}.png')
    nb.button('queue')
    expect(nb.page.locator('.sft-card .sft-bad')).to_have_count(0)
    p = [float(o.split('p ')[1].split(' ')[0]) for o in nb.page.locator('.sft-nums').all_text_contents() if 'p ' in o]
    assert p==sorted(p) and nb.cards.count()
    nb.cards.first.click()
    nb.button('Exclude')
    expect(nb.said).to_contain_text('exclude')
    assert [json.loads(o)['do'] for o in (nb.folder/f'{task}-pool.jsonl').read_text().splitlines()]==['exclude'] and not (nb.folder/f'{task}.jsonl').exists()
    assert nb.errors==[]
    nb.page.close()

digits = """
from sft_nb.all import *
from sft_nb.tasks.demo_data import make_demo
digits = make_demo('image', cache_home()/'demo')['source']
learn = sft_learner(load_data('image', digits, max_items=1000, size=64, resize='squish', augment=False))
with learn.no_bar(), learn.no_logging(): learn.fine_tune(5, base_lr=1e-2, decay=.85, freeze_epochs=3, head_lr=4e-3)
"""

@pytest.mark.slow
def test_digits(lab, browser, shots):
    "What the quick start ends with, and the same as a page; the pictures in the documentation"
    shown = "ev = evaluate(learn)\nev.to_html('digits.html', title='Digits', learn=learn)\nInspector(ev, learn, marks='digits.jsonl', page_size=12)"
    nb = Notebook(lab, browser, 'digits', digits, shown)
    nb.page.set_viewport_size(dict(width=1300, height=1500))
    nb.cards.nth(1).click()
    expect(nb.page.locator('.sft figcaption').first).to_be_visible(timeout=slow_machine)
    nb.shoot(shots/'digits.png')
    assert nb.errors==[]
    nb.page.set_viewport_size(dict(width=1280, height=860))
    nb.page.goto((nb.folder/'digits.html').as_uri())
    nb.page.locator('.sft-card').nth(1).click()
    expect(nb.page.locator('#full figcaption').first).to_be_visible()
    nb.page.screenshot(path=shots/'digits-page.png')
    nb.page.close()

@pytest.fixture(scope='module')
def report(nb):
    "The address of a static page of the same rows"
    from sft_nb.data.task import get_task
    space = dict(EVIL=evil)
    here = os.getcwd()
    os.chdir(nb.folder)
    try:
        exec(pictures, space)
        return space['ev'].to_html('report.html', title=f'Pictures {evil}').resolve().as_uri()
    finally: os.chdir(here)

def test_the_static_page(report, browser, shots):
    "Filters, orders, pages, cells, keys; no word of the data runs; every control has a name"
    page,said = new_page(browser)
    page.goto(report)
    count,cards = page.locator('#count'),page.locator('.sft-card')
    expect(count).to_have_text('1–24 of 60')
    page.get_by_label('Next page').click()
    expect(count).to_have_text('25–48 of 60')
    page.get_by_label('result').select_option('wrong')
    expect(count).to_have_text('1–8 of 8')
    page.get_by_label('order').select_option('uncertainty')
    p = [float(o.split('p ')[1].split(' ')[0]) for o in page.locator('.sft-nums').all_text_contents()]
    assert p==sorted(p)
    page.get_by_role('button', name='target cat, prediction dog').click()
    expect(cards.first).to_contain_text('cat → dog')
    page.get_by_role('button', name='Clear filters').click()
    page.keyboard.press('ArrowRight'); page.keyboard.press('ArrowRight')
    expect(cards.nth(1)).to_have_attribute('aria-current', 'true')
    expect(page.locator('#full h3')).to_be_visible()
    page.screenshot(path=shots/'report.png')
    page.keyboard.press('PageDown'); page.keyboard.press('ArrowRight')
    expect(count).to_have_text('25–48 of 60')
    expect(cards.first).to_have_attribute('aria-current', 'true')
    page.get_by_role('slider', name='threshold').fill('0.9')
    expect(page.locator('#threshold-said')).to_contain_text('At 0.90: precision')
    assert page.locator('#curve path').last.get_attribute('d')=='M490 24V200'
    page.get_by_label('text').fill('script')
    expect(count).to_have_text('1–1 of 1')
    cards.first.click()
    expect(page.locator('#full h3')).to_contain_text('<script>')
    assert page.evaluate('window.hacked') is None
    bare = page.evaluate("() => [...document.querySelectorAll('button,input,select,img')]"
                         ".filter(o => !(o.labels?.length || o.getAttribute('aria-label') || o.alt || o.textContent.trim())).map(o => o.outerHTML)")
    assert bare==[] and said==[]
    page.close()

@pytest.fixture
def odd_page(browser, tmp_path):
    "A page of rows whose texts have unusual cases, one of them without a probability"
    import numpy as np, pandas as pd
    from sft_nb.data.task import get_task
    from sft_nb.evaluation.results import Evaluation
    texts = ['Straße','ΟΔΟΣ','ﬁne İzmir','GROẞ']
    rows = pd.DataFrame(dict(item=['a','b','c','d'], text=texts, target=['x & '*20,'y','y','y'], prediction=['y','y','y','y'], probability=[.9,np.nan,.2,.5], loss=[2.,np.nan,.3,.1], correct=[False,True,True,True]))
    page,said = new_page(browser)
    page.goto(Evaluation(rows, get_task('text'), sorted(set(rows.target))).to_html(tmp_path/'odd.html').as_uri())
    yield page
    assert said==[]
    page.close()

@pytest.mark.parametrize('words,found', [('STRASSE','Straße'), ('straße','Straße'), ('οδος','ΟΔΟΣ'), ('ΟΔΟΣ','ΟΔΟΣ'), ('οδο','ΟΔΟΣ'), ('FINE i̇zmir','ﬁne İzmir'), ('gross','GROẞ'), ('groß','GROẞ')])
def test_the_static_page_searches_in_any_case(odd_page, words, found):
    odd_page.get_by_label('text').fill(words)
    expect(odd_page.locator('#count')).to_have_text('1–1 of 1')
    expect(odd_page.locator('.sft-card')).to_contain_text(found)

@pytest.mark.parametrize('low,high,items', [('0','','dca'), ('','1','dca'), ('0','1','dca'), ('','0.5','dc'), ('0.5','','da'), ('','','dcba')])
def test_the_static_page_bounds_what_is_known(odd_page, low, high, items):
    "A row of unknown probability is within no bounds"
    odd_page.get_by_label('probability from').fill(low)
    odd_page.get_by_label('to', exact=True).fill(high)
    expect(odd_page.locator('.sft-card')).to_have_count(len(items))
    shown = [next(o for o in 'abcd' if t in o_texts[o]) for t in odd_page.locator('.sft-snip').all_text_contents()]
    assert sorted(shown)==sorted(items)

o_texts = dict(a='Straße', b='ΟΔΟΣ', c='ﬁne İzmir', d='GROẞ')

def test_the_static_page_clicked(odd_page):
    "A number or a bar takes other filters away and shows its rows, also where the click meets a part of it; a long name is cut as text"
    odd_page.get_by_label('text').fill('nothing')
    odd_page.get_by_role('button', name='3 rows: target y, prediction y').click()
    expect(odd_page.locator('#count')).to_have_text('1–3 of 3')
    odd_page.locator('[data-do=bin][aria-label*="0.90 to 0.95"] .w').click()
    expect(odd_page.locator('.sft-card')).to_contain_text('Straße')
    expect(odd_page.locator('#count')).to_have_text('1–1 of 1')
    assert odd_page.locator('#f-target option').nth(1).text_content()==('x & '*20)[:60]
