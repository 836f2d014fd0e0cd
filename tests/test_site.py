"The documentation site: what pages may hold, and the built site in a browser"
import functools, http.server, shutil, subprocess, sys, threading
from pathlib import Path
from urllib.parse import unquote
import pytest, yaml
from browser import browsers
from playwright.sync_api import sync_playwright
from docs_site.build import configuration
from docs_site.navigation import SECTIONS
from docs_site.pages import Page, PageError, _Writer, render

root = Path(__file__).resolve().parents[1]

def html(md, head=None): return render(Page(Path('x.ipynb'), head or dict(title='x'), md), lambda page, url: url)[0]

def test_callouts_tabs_and_math():
    out = html('::: {.callout-tip title="Less"}\nOne *word*.\n:::\n\n::: {.panel-tabset}\n## fastai\nA\n\n## Keras\nB\n:::\n\n$a_1$')
    assert 'class="callout callout-tip"' in out and '<p>Less</p>' in out and '<em>word</em>' in out
    assert out.count('type="radio"')==2 and out.count('class="tab"')==2 and '<h2' not in out
    assert '<math' in out and '\\(' not in out

def test_numbers_are_given_and_referred_to():
    out = html('![A cat](cat.png){#fig-cat alt="A cat"}\n\n$$e=1$$ {#eq-one}\n\nSee @fig-cat and @eq-one; `@patch` and me@x.org are text, as is @anyone.')
    assert 'Figure 1: A cat' in out and '<a href="#fig-cat">Figure 1</a>' in out and '<a href="#eq-one">Equation 1</a>' in out
    assert 'id="eq-one"' in out and '@anyone' in out

@pytest.mark.parametrize('md,said', [
    ('::: {.callout-odd}\nx\n:::', 'callout-odd'), ('See @fig-no.', '@fig-no refers to nothing'), ('{{< video a.mp4 >}}', 'only Quarto knows'),
    ('::: {.column-margin}\nx\n:::', 'column-margin'), ('![](a.png)', 'no description'), ('```{=latex}\nx\n```', "format 'latex'"), ('$\\nothing{x}$', 'TeX math'),
    ('# A {#a}\n\n# B {#a}', 'Duplicate identifier')])
def test_what_is_not_understood_is_an_error(md, said):
    with pytest.raises(PageError, match=said.replace('$', '.')): html(md)

def cell(source='', *outputs): return dict(cell_type='code', source=source, outputs=list(outputs))
def shown(**data): return dict(output_type='display_data', metadata={}, data=data)

def test_outputs():
    w = _Writer(Path('a.ipynb'))
    table = w.code(cell('x', shown(**{'text/html': '<table></table>', 'text/plain': 'T'})), 'a')
    assert '{=html}' in table and '{.python .code}' in table and 'T' not in table
    assert 'A row of cats' in w.code(cell('#| fig-alt: A row of cats\nx', shown(**{'image/png': 'AAAA', 'text/plain': 'Figure'})), 'a') and list(w.files)==['a_files/1.png']
    widget = w.code(cell('x', shown(**{'application/vnd.jupyter.widget-view+json': {}, 'text/html': 'w', 'text/plain': 'Button()'})), 'a')
    assert 'Interactive in a notebook' in widget and 'Button()' in widget
    for bad in (cell('#| odd: 1\nx'), cell('x', shown(**{'application/x-odd': ''})), cell('x', dict(output_type='error', evalue='no'))):
        with pytest.raises(PageError): w.code(bad, 'a')

@pytest.fixture(scope='module')
def site():
    "Address of the site, built anew from the stored outputs"
    r = subprocess.run([sys.executable, '-m', 'docs_site.build', '--pandoc'], cwd=root, capture_output=True, text=True)
    assert not r.returncode, r.stderr[-3000:]
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=root/'_docs')) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{s.server_address[1]}/'
        s.shutdown()

@pytest.fixture(scope='module')
def browser(site):
    "The system's Chromium, or the one that `playwright install chromium` brings"
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=next(filter(None, map(shutil.which, browsers)), None), args=['--no-sandbox'])
        yield b
        b.close()

def pages(): return sorted(p.relative_to(root/'_docs').as_posix() for p in (root/'_docs').rglob('*.html'))

look = '''() => ({ids: [...document.querySelectorAll('[id]')].map(o => o.id), title: document.querySelector('h1').textContent, tab: document.title,
  names: [...document.querySelectorAll('.sidebar a, .turn a, .tool')].map(o => o.innerText || o.textContent),
  headings: [...document.querySelectorAll('main :is(h1,h2,h3,h4)')].map(o => o.textContent),
  links: [...document.querySelectorAll('a[href]')].map(o => o.href),
  bare: [...document.images].filter(o => !o.alt.trim() || !o.naturalWidth).map(o => o.src),
  alts: [...document.querySelectorAll('main img[src*="_files/"]')].map(o => o.alt),
  sidebar: [...document.querySelectorAll('.sidebar a')].map(o => new URL(o.href).pathname)})'''
# Text that runs out of the window, and boxes that are wider than their column and cannot be scrolled
wide = '''() => [...document.querySelectorAll('main *')].filter(o => o.getBoundingClientRect().right > innerWidth+1 && !o.closest('.wide,pre,math'))
  .map(o => o.outerHTML.slice(0,120)).concat(document.documentElement.scrollWidth > innerWidth ? ['the page scrolls sideways'] : [])'''

@pytest.fixture(scope='module')
def seen(site, browser):
    "Page -> what a browser found on it"
    tab,said,found = browser.new_page(),[],{}
    tab.on('console', lambda m: said.append(m.text) if m.type in ('error', 'warning') else None)
    tab.on('pageerror', lambda e: said.append(str(e)))
    tab.on('requestfailed', lambda r: said.append(r.url))
    for name in pages():
        said.clear()
        status = tab.goto(site+name, wait_until='load').status
        found[name] = dict(tab.evaluate(look), status=status, wide={})
        for w in (400, 1400):
            tab.set_viewport_size(dict(width=w, height=900))
            found[name]['wide'][w] = tab.evaluate(wide)
        found[name]['said'] = list(said)
    return found

def test_every_notebook_is_a_page(seen):
    notebooks = [p for p in root.glob('nbs/**/*.ipynb') if not any(o.startswith('.') for o in p.parts)]
    assert len(seen)==len(notebooks)+1+len([o for o in SECTIONS if o]) # all names, and an overview per folder

def test_pages_load_quietly(seen):
    assert {k:(o['status'], o['said']) for k,o in seen.items() if o['status']!=200 or o['said']}=={}

def test_headings_are_words(seen):
    assert [(k, h) for k,o in seen.items() for h in o['headings'] if '{#' in h or h.startswith('_')]==[]

def test_titles_are_text(seen):
    assert [(k, t) for k,o in seen.items() for t in (o['title'], o['tab'], *o['names']) if '`' in t]==[]
    assert all('GitHub' in o['names'] for o in seen.values())

def test_links_and_anchors(seen, site):
    bad = []
    for name,o in seen.items():
        for url in (u for u in o['links'] if u.startswith(site)):
            path,_,at = url.removeprefix(site).partition('#')
            path,at = path or 'index.html',unquote(at)
            if path in seen and at and at not in seen[path]['ids'] or path not in seen and not (root/'_docs'/path).is_file(): bad.append((name, url))
    assert bad==[]

def test_no_link_leads_to_the_site_elsewhere(seen):
    home = yaml.safe_load((root/'nbs/nbdev.yml').read_text())['website']['site-url']
    assert [(k, u) for k,o in seen.items() for u in o['links'] if u.startswith(home)]==[]

def test_pictures_are_there_and_described(seen):
    assert {k:o['bare'] for k,o in seen.items() if o['bare']}=={}

def test_drawings_are_described_in_words(seen):
    assert [(k, o) for k,page in seen.items() for o in page['alts'] if '(' in o or ')' in o or o.startswith('What')]==[]

@pytest.mark.parametrize('width', [400, 1400])
def test_readable(seen, width):
    assert {k:o['wide'][width] for k,o in seen.items() if o['wide'][width]}=={}

def test_sidebar_is_that_of_quarto(seen):
    entries = configuration(root/'nbs')['website']['sidebar']['contents']
    files = [f['href'] if isinstance(f, dict) else f for o in entries for f in (o['contents'] if isinstance(o, dict) else [o])]
    assert {str(p.relative_to(root/'nbs')) for p in root.glob('nbs/**/*.ipynb')} <= set(files)
    stem = lambda f: str(Path(f).with_name(Path(f).stem.lstrip('0123456789').partition('_')[2] if Path(f).stem[0].isdigit() else Path(f).stem))
    assert {tuple(o['sidebar']) for o in seen.values()}=={tuple(f'/{stem(f)}.html' for f in files)}

@pytest.fixture
def tab(site, browser):
    context = browser.new_context(viewport=dict(width=1400, height=900))
    yield context.new_page()
    context.close()

@pytest.mark.parametrize('asked,page', [('freeze_to', 'training/learner.html#freeze_to'), ('gradual_unfreeze', 'training/schedule.html#sftlearner.gradual_unfreeze')])
def test_search(site, tab, asked, page):
    tab.goto(site)
    tab.keyboard.press('/')
    tab.keyboard.type(asked)
    first = tab.locator('dialog li a').first
    first.wait_for()
    assert first.get_attribute('href').endswith(page)
    first.click()
    tab.wait_for_url(f'**/{page}')

@pytest.mark.parametrize('asked,page', [
    ('transfer learning', 'tutorials/quick_start.html'), ('what is sft', 'tutorials/what_is_sft.html'), ('dropout', 'models/heads.html'), ('overfitting', 'training/curves.html'),
    ('label noise', 'recipes/noisy_labels.html'), ('LoRA', 'training/adapters.html'), ('chat template', 'tutorials/chat.html'),
    ('微调', 'zh/quick_start.html'), ('监督微调', 'zh/what_is_sft.html'), ('过拟合', 'training/curves.html'), ('迁移学习', 'zh/what_is_sft.html'), ('标签噪声', 'zh/recipes.html')])
def test_search_by_what_people_call_it(site, tab, asked, page):
    tab.goto(site)
    tab.keyboard.press('/')
    tab.locator('dialog input').fill(asked)
    tab.locator('dialog li a').first.wait_for()
    tab.wait_for_timeout(100)
    found = [url.removeprefix(site).partition('#')[0] for url in tab.locator('dialog li a').evaluate_all('all => all.map(o => o.href)')]
    assert page in list(dict.fromkeys(found))[:3]
    assert any(o!='tutorials/words.html' for o in found[:3])

def test_search_words_are_hidden(site, tab):
    tab.goto(site+'tutorials/what_is_sft.html')
    assert 'transfer learning' in tab.locator('[data-pagefind-meta=words]').text_content() and not tab.is_visible('[data-pagefind-meta=words]')

def test_words_typed_before_the_index_has_arrived(site, tab):
    def late(route):
        tab.wait_for_timeout(600)
        route.continue_()
    tab.route('**/pagefind/pagefind.js', late)
    tab.goto(site)
    tab.keyboard.press('/')
    tab.keyboard.type('freeze_to')
    tab.locator('dialog li a').first.wait_for(timeout=15_000)

def test_theme_is_kept(site, tab):
    tab.goto(site)
    tab.click('.theme')
    dark = tab.evaluate('getComputedStyle(document.body).backgroundColor')
    tab.goto(site+'names.html')
    assert tab.evaluate('[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]')==['dark', dark]

def test_menu_on_a_phone(site, tab):
    tab.set_viewport_size(dict(width=400, height=800))
    tab.goto(site)
    assert not tab.is_visible('.sidebar')
    tab.click('.menu')
    tab.click('.sidebar >> text=All names')
    tab.wait_for_url('**/names.html')

def test_copy_and_turning_pages(site, tab):
    tab.context.grant_permissions(['clipboard-read', 'clipboard-write'])
    tab.goto(site)
    tab.hover('main pre >> nth=0')
    tab.click('.copy >> nth=0')
    tab.get_by_text('Copied').wait_for()
    assert tab.evaluate('navigator.clipboard.readText()').strip()==tab.locator('main pre code').first.text_content().strip()
    tab.click('[rel=next]')
    tab.click('[rel=prev]')
    tab.wait_for_url(site+'index.html')

def test_markdown_of_each_page_for_language_models(seen):
    listed = [line.split('](')[1].split(')')[0] for line in (root/'_docs/llms.txt').read_text().splitlines() if '.html.md)' in line]
    home = yaml.safe_load((root/'nbs/nbdev.yml').read_text())['website']['site-url']
    assert listed and all((root/'_docs'/u.removeprefix(home+'/')).is_file() for u in listed)

contrast = '''() => {
  const ctx = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
  const rgba = c => { ctx.clearRect(0,0,1,1); ctx.fillStyle = c; ctx.fillRect(0,0,1,1); return [...ctx.getImageData(0,0,1,1).data] }
  const light = c => c.slice(0,3).map(v => v/255).map(v => v <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4).reduce((s,v,i) => s+v*[.2126,.7152,.0722][i], 0)
  const under = o => { for (; o; o = o.parentElement) { const c = rgba(getComputedStyle(o).backgroundColor); if (c[3] > 250) return c } return [255,255,255,255] }
  const bad = {}
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (texts.nextNode()) {
    const o = texts.currentNode.parentElement
    if (!texts.currentNode.data.trim() || !o.checkVisibility({checkOpacity: true}) || o.closest('math')) continue
    const [a,b] = [light(rgba(getComputedStyle(o).color)), light(under(o))].sort((x,y) => y-x)
    if ((a+.05)/(b+.05) < 4.5) bad[o.tagName+'.'+o.className] = ((a+.05)/(b+.05)).toFixed(2)
  }
  return bad
}'''

@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_contrast(site, browser, scheme):
    "Text stands out from what is below it by 4.5 to 1 (WCAG AA)"
    context,bad = browser.new_context(color_scheme=scheme),{}
    tab = context.new_page()
    for name in pages():
        tab.goto(site+name)
        if found := tab.evaluate(contrast): bad[name] = found
    context.close()
    assert bad=={}
