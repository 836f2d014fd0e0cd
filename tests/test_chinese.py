"The Chinese pages show the code and the results of the English ones"
import re, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/'tools'))
from chinese import english, nbs, NOT_RUN, notebook, SOURCES, text
sys.path.remove(str(root/'tools'))

def cells(name, kind): return [c for c in notebook(name)['cells'] if c['cell_type']==kind]
def numbers(cells): return {o for c in cells for o in re.findall(r'\d[\d,]*(?:\.\d+)?', re.sub(r'\]\([^)]*\)', '', text(c)))}

def test_every_page_has_its_source():
    assert {p.stem for p in (nbs/'zh').glob('*.ipynb')}==set(SOURCES)

@pytest.mark.parametrize('name', SOURCES)
def test_code_and_results_are_those_of_the_english_page(name):
    shown,sources = cells(f'zh/{name}', 'code'),english(name)
    assert len(shown)>=10 and all(text(c).startswith(NOT_RUN) for c in shown)
    assert [o for o in shown if sources.get(text(o).removeprefix(NOT_RUN))!=o['outputs']]==[], 'run tools/chinese.py'
    places = [list(sources).index(text(c).removeprefix(NOT_RUN)) for c in shown]
    assert places==sorted(places)

@pytest.mark.parametrize('name', ['00_quick_start', '01_what_is_sft'])
def test_numbers_in_the_text_are_those_of_the_english_page(name):
    "340 万 is 3.4 million"
    known = numbers(c for s in SOURCES[name] for c in cells(s, 'markdown'))|{'340'}
    assert numbers(cells(f'zh/{name}', 'markdown'))<=known
