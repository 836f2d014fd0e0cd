"The Chinese pages show the code and the results of the English ones"
import re, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/'tools'))
from chinese import english, nbs, NOT_RUN, notebook, SOURCES, text
sys.path.remove(str(root/'tools'))

def cells(name, kind): return [c for c in notebook(name)['cells'] if c['cell_type']==kind]
def numbers(cells): return {o for c in cells for o in re.findall(r'\d+(?:,\d{3})*(?:\.\d+)?', re.sub(r'\]\([^)]*\)', '', text(c)))}

def test_every_page_has_its_source():
    assert {p.stem for p in (nbs/'zh').glob('*.ipynb')}==set(SOURCES)

@pytest.mark.parametrize('name', SOURCES)
def test_code_and_results_are_those_of_the_english_page(name):
    shown,sources = cells(f'zh/{name}', 'code'),english(name)
    assert len(shown)>=10 and all(text(c).startswith(NOT_RUN) for c in shown)
    assert [o for o in shown if sources.get(text(o).removeprefix(NOT_RUN))!=o['outputs']]==[], 'run tools/chinese.py'
    places = [list(sources).index(text(c).removeprefix(NOT_RUN)) for c in shown]
    assert places==sorted(places)

def unnumbered(cell): return dict(cell, source=re.sub(r'(?m)^## \d+ · ', '## ', text(cell)))

@pytest.mark.parametrize('name,kinds', [('00_quick_start', ['markdown']), ('01_what_is_sft', ['markdown']), ('02_recipes', ['markdown', 'code'])])
def test_numbers_in_the_text_are_those_of_the_english_page(name, kinds):
    "340 万 is 3.4 million; the recipes are numbered in one page, and say of a number that the code has it"
    known = numbers(c for s in SOURCES[name] for k in kinds for c in cells(s, k))|{'340'}
    assert numbers(map(unnumbered, cells(f'zh/{name}', 'markdown')))<=known
