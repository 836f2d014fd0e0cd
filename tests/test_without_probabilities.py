"Where no probability is known, nothing is drawn of probabilities"
import re
import pandas as pd, pytest
from sft_nb.evaluation.tables import evaluate_table
from sft_nb.inspection.inspector import Inspector
from sft_nb.inspection.page import evaluation_page

def table(**kw): return pd.DataFrame(dict(text=['one','two','three'], target=['x','y','y'], prediction=['x','y','x'], **kw))
def tags(): return pd.DataFrame(dict(words=[['a','b'],['c']], target=[['P','O'],['O']], prediction=[['P','O'],['P']]))

@pytest.mark.parametrize('ev,drawn', [(lambda: evaluate_table(table(), 'text'), ['Confusion']), (lambda: evaluate_table(tags(), 'tokens'), None),
                                      (lambda: evaluate_table(table(probability=[.9,.8,.7]), 'text'), ['Confusion','Confidence','Thresholds'])])
def test_page_and_inspector(ev, drawn, tmp_path):
    ev = ev()
    page = evaluation_page(ev, tmp_path/'page.html').read_text()
    views = [o for o in re.findall('<h2>(.*?)</h2>', page) if o in ('Confusion','Confidence','Thresholds')]
    look = Inspector(ev, marks=tmp_path/'marks.jsonl')
    known = bool(ev.rows.probability.notna().any())
    assert [('Confidence' in o, 'Thresholds' in o) for o in (views, look.tabs.titles)]==[(known,known)]*2
    assert ('The highest has' in page, 'id="threshold"' in page)==(known, known)
    if drawn is not None: assert (views, list(look.tabs.titles))==(drawn, ['Rows',*drawn])
    assert not re.search(r'\b1 rows', page)
