"The static page of every kind of data in Chromium: no serious fault in light and dark, filters by measures and by what changed, sounds as small pictures"
import json, re
import numpy as np, pandas as pd, pytest
from playwright.sync_api import expect
from browser import chromium, faults, new_page
from kinds_shown import KINDS, two_evaluations
from sft_nb.core.basics import DataError
from sft_nb.data.task import get_task
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.evaluation.results import Evaluation
from sft_nb.inspection.inspector import Inspector

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp('browser')) as b: yield b

@pytest.fixture(scope='module')
def shown(tmp_path_factory):
    "kind -> (evaluation, the same before training, its page beside it); each is made once"
    folder,made = tmp_path_factory.mktemp('shown'),{}
    def get(kind):
        if kind not in made:
            learn,ev,before = two_evaluations(kind, folder)
            made[kind] = ev,before,ev.to_html(folder/f'{kind}.html', learn=learn, explain=2, against=before)
        return made[kind]
    return get

def data(path): return json.loads(re.search('id="data">(.*?)</script>', path.read_text())[1])

@pytest.mark.parametrize('kind', KINDS)
def test_no_serious_fault(shown, browser, kind):
    ev,before,path = shown(kind)
    page,said = new_page(browser)
    for scheme in ('light','dark'):
        page.emulate_media(color_scheme=scheme)
        page.goto(path.as_uri())
        page.locator('.sft-card').first.click()
        expect(page.locator('#full h3')).to_be_visible()
        assert faults(page)==[], scheme
    page.set_viewport_size(dict(width=700, height=900))
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    assert said==[]
    page.close()

def test_a_fault_is_found(browser):
    page,_ = new_page(browser)
    page.set_content('<html lang="en"><title>a</title><main><h1>a</h1><p style="color:#999;background:#fff">pale</p><ul><li>a</ul><img src="data:,"></main>')
    assert {o.split(':')[0] for o in faults(page)}=={'color-contrast','image-alt'}
    page.close()

def test_bounded_by_a_measure(shown, browser):
    ev,_,path = shown('audio')
    names = [o['name'] for o in data(path)['measures']]
    assert names==['loss','duration','loudness','seconds']
    page,said = new_page(browser)
    page.goto(path.as_uri())
    expect(page.get_by_label('measure from')).to_be_disabled()
    page.locator('#f-measure').select_option(label='duration')
    least,most = (float(page.get_by_label(f'measure {o}').get_attribute('placeholder')) for o in ('from','to'))
    assert [least,most]==pytest.approx([ev.rows.seconds.min(), ev.rows.seconds.max()], rel=1e-3)
    middle = round(float(ev.rows.seconds.median()), 3)
    page.get_by_label('measure from').fill(str(middle))
    expect(page.locator('#count')).to_have_text(re.compile(f'of {(ev.rows.seconds>=middle).sum()}$'))
    page.get_by_label('measure to').fill(str(middle))
    expect(page.locator('#count')).to_have_text('0–0 of 0')
    page.get_by_role('button', name='Clear filters').click()
    expect(page.locator('#count')).to_have_text(f'1–{len(ev)} of {len(ev)}')
    assert page.locator('.sft-card img.sft-strip').count()==len(ev) and said==[]
    page.close()

@pytest.mark.parametrize('kind', ['audio','numbers','translation'])
def test_what_changed(shown, browser, kind):
    "The counts beside the names are those of the rows that are shown, and of the Inspector"
    ev,before,path = shown(kind)
    page,said = new_page(browser)
    page.goto(path.as_uri())
    offered = page.get_by_label('changed').locator('option').all_text_contents()
    look = Inspector(ev, against=before, marks=path.with_suffix('.jsonl'))
    assert offered==[o for o,_ in look.w['changed'].options] and len(offered)>2
    for o in offered[1:]:
        n = int(re.search(r'\((\d+)\)', o)[1])
        page.get_by_label('changed').select_option(label=o)
        expect(page.locator('.sft-card')).to_have_count(n)
        look.show(changed=dict(look.w['changed'].options)[o])
        assert len(look.sel)==n and look.rows_pane.html.count('other: ')==n
    assert said==[]
    page.close()

def test_other_rows_are_refused(shown, tmp_path):
    ev,before,_ = shown('audio')
    some = Evaluation(before.rows.iloc[1:], ev.task, ev.vocab)
    for f in (lambda: ev.to_html(tmp_path/'a.html', against=some), lambda: Inspector(ev, against=some, marks=tmp_path/'a.jsonl')):
        with pytest.raises(DataError, match='Evaluate both models on the same rows'): f()
    for f in (lambda: ev.to_html(tmp_path/'a.html', against=before.rows), lambda: Inspector(ev, against=before.rows, marks=tmp_path/'a.jsonl')):
        with pytest.raises(DataError, match='must be an Evaluation'): f()
    assert not (tmp_path/'a.html').exists()

def test_rows_in_another_order_are_paired_by_name(shown, tmp_path):
    ev,before,_ = shown('audio')
    turned = Evaluation(before.rows.iloc[::-1].reset_index(drop=True), ev.task, ev.vocab)
    looks = [Inspector(ev, against=o, marks=tmp_path/'a.jsonl') for o in (before, turned)]
    assert looks[0].rows_pane.html==looks[1].rows_pane.html and 'other: ' in looks[0].rows_pane.html

def test_what_cannot_be_read_has_no_measure(tmp_path):
    "The page and the filter go on where a file is gone"
    rows = pd.DataFrame(dict(item=['a.wav','b.wav'], audio=['a.wav', (np.zeros(800, np.float32), 8000)], target='x',
                             prediction=['x','y'], probability=.9, loss=[.1,2.], correct=[True,False]))
    ev = Evaluation(rows, get_task('audio'), ['x','y'])
    found = data(ev.to_html(tmp_path/'page.html'))
    assert sorted((r['m'] for r in found['rows']), key=str)==[[.1,None,None],[2.,.1,-120]]
    look = Inspector(ev, marks=tmp_path/'a.jsonl')
    look.w['measure'].value = 'duration'
    assert len(look.sel)==2 and look.w['span'].fields[0].placeholder=='0.1'
    look.w['span'].value = (0,None)
    assert look.sel.found().tolist()==[1]
    look.show(measure=('duration',.2,None))
    assert len(look.sel)==0 and look.w['span'].fields[0].value=='0.2'
    look.clear_filters()
    assert len(look.sel)==2 and look.w['span'].value==(None,None)
    with pytest.raises(DataError, match="measure='durations' does not occur. Did you mean 'duration'"): look.show(measure=('durations',0,1))

def test_where_widgets_are_not_shown(tmp_path):
    "The output has a word on what to do, beside the widget, without a path of the machine"
    rows = pd.DataFrame(dict(item=['a'], text=['b'], target=['x'], prediction=['x'], probability=[.9], loss=[.1], correct=[True]))
    said = Inspector(Evaluation(rows, get_task('text'), ['x']), marks=tmp_path/'a.jsonl')._repr_mimebundle_()
    assert {'application/vnd.jupyter.widget-view+json','text/html'}<=set(said) and "ev.to_html('report.html')" in said['text/html'] and 'pip install' in said['text/html']
