"Where a notebook is shown without widgets: exported pages, GitHub, an editor without the extension"
import re
from html.parser import HTMLParser
import nbformat, pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter, MarkdownExporter
from browser import chromium
from sft_nb.inspection.cards import STYLE
from test_inspector_browser import evil, pictures

WIDGET = 'application/vnd.jupyter.widget-view+json'
plain = set('p b br code table thead tbody tr th td img span'.split()) # what GitHub leaves as it is

@pytest.fixture(scope='module')
def shown(tmp_path_factory):
    "A notebook with an Inspector in it, as it is stored without the state of its widgets"
    cells = [f'EVIL = {evil!r}\n{pictures}', "look = Inspector(ev, marks='marks.jsonl')\nlook.marks.mark('pics/10.png', 'exclude')\nlook", 'look.turn(9)\nlook']
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in cells])
    NotebookClient(nb, timeout=300, kernel_name='python3', store_widget_state=False, resources=dict(metadata=dict(path=str(tmp_path_factory.mktemp('places'))))).execute()
    return nb

def bundle(nb, i): return nb.cells[i].outputs[-1].data

class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen = []
        self.feed(text)
    def handle_starttag(self, tag, attrs): self.seen.append((tag, dict(attrs)))

def test_a_bundle_holds_rows_beside_the_widget(shown):
    "Each place takes what it can show: the widget where there are widgets, else HTML that stands without style and script, else a line"
    data = bundle(shown, 1)
    assert data[WIDGET]['model_id'] and data['text/plain'].startswith('Inspector of 60 rows')
    text = data['text/html']
    assert 'Inspector of 60 rows, the first 6 of them below' in text and 'pip install ipywidgets anywidget' in text and "ev.to_html('report.html')" in text
    tags = Tags(text).seen
    assert {t for t,_ in tags}<=plain and [t for t,_ in tags].count('tr')==7
    assert all(a['alt'] and a['src'].startswith('data:image/') for t,a in tags if t=='img') and [t for t,_ in tags].count('img')==6
    assert not [a for _,a in tags if set(a)-{'class','alt','src','scope'}]
    assert re.search(r'pics/10\.png.*?exclude', text) and len(text)<50_000
    assert bundle(shown, 2)['text/html']!=text # the page that is looked at

def test_an_exported_notebook_shows_the_rows(shown):
    for exporter in (HTMLExporter(), MarkdownExporter()):
        text,_ = exporter.from_notebook_node(shown)
        assert 'Inspector of 60 rows' in text and 'pics/10.png' in text and WIDGET not in text and evil not in re.sub(r'(?s)<div class="highlight.*?</div>|```.*?```', '', text)

def test_a_chat_box_shows_what_was_said(tmp_path):
    from sft_nb.data.load import load_data
    from sft_nb.inspection.chat_box import ChatBox
    from sft_nb.tasks.toys import make_toy
    from sft_nb.training.learner import sft_learner
    toy = make_toy('chat', tmp_path)
    box = ChatBox(sft_learner(load_data('chat', toy['source'], checkpoint=toy['checkpoint'], valid=.25), freeze=None), max_new_tokens=2)
    box.ask('What color is snow?')
    data = box._repr_mimebundle_()
    assert WIDGET in data and 'pip install ipywidgets' in data['text/html'] and 'class="user">What color is snow?</p>' in data['text/html']

def luminance(color):
    part = [int(o)/255 for o in re.findall(r'\d+', color)[:3]]
    return sum(w*(o/12.92 if o<=.03928 else ((o+.055)/1.055)**2.4) for w,o in zip((.2126,.7152,.0722), part))

@pytest.mark.parametrize('kind,ground', [('class="vscode-dark"','#1e1e1e'), ('class="vscode-light"','#ffffff'), ('class="theme-dark"','#111111'), ('data-jp-theme-light="false"','#111111')])
def test_cards_can_be_read_in_each_theme(tmp_path, kind, ground):
    "The renderer of VS Code brings the light colors of JupyterLab, whatever the theme is"
    lab = '#ffffff' if 'vscode' in kind else ground
    page = f'<style>:root {{ --jp-layout-color1:{lab}; --vscode-editor-background:{ground}; }} {STYLE}</style><body {kind}><div class="sft"><button class="sft-card">a card</button></div>'
    (tmp_path/'page.html').write_text(page)
    with chromium(tmp_path/'browser') as b:
        tab = b.new_page()
        tab.goto((tmp_path/'page.html').as_uri())
        for at in ('.sft', '.sft-card'):
            ink,paper = tab.locator(at).evaluate("o => [getComputedStyle(o).color, getComputedStyle(o).backgroundColor]")
            light,dark = sorted((luminance(ink), luminance(paper)), reverse=True)
            assert (light+.05)/(dark+.05)>=7, (ink, paper)
