"The Chinese pages show the code and the results of the English ones"
import json, re
from pathlib import Path
import pytest

nbs = Path(__file__).resolve().parents[1]/'nbs'
SOURCES = {'00_quick_start':['tutorials/00_quick_start'], '01_what_is_sft':['tutorials/02_what_is_sft'],
           '02_recipes':sorted(str(p.relative_to(nbs).with_suffix('')) for p in (nbs/'recipes').glob('*.ipynb'))}

def cells(name, kind): return [c for c in json.loads((nbs/f'{name}.ipynb').read_text(encoding='utf8'))['cells'] if c['cell_type']==kind]
def text(cell): return ''.join(cell['source'])
def numbers(cells): return {o for c in cells for o in re.findall(r'\d[\d,]*(?:\.\d+)?', re.sub(r'\]\([^)]*\)', '', text(c)))}

def test_every_page_has_its_source():
    assert {p.stem for p in (nbs/'zh').glob('*.ipynb')}==set(SOURCES)

@pytest.mark.parametrize('name', SOURCES)
def test_code_and_results_are_those_of_the_english_page(name):
    english = [(text(c), c['outputs']) for s in SOURCES[name] for c in cells(s, 'code')]
    shown = cells(f'zh/{name}', 'code')
    assert len(shown)>=10 and all(text(c).startswith('#| eval: false\n') for c in shown)
    places = [english.index((text(c).removeprefix('#| eval: false\n'), c['outputs'])) for c in shown]
    assert places==sorted(places)

@pytest.mark.parametrize('name', ['00_quick_start', '01_what_is_sft'])
def test_numbers_in_the_text_are_those_of_the_english_page(name):
    words = {'340':'3.4', '5':'5,000'}
    known = numbers(c for s in SOURCES[name] for c in cells(s, 'markdown'))|set(words)
    assert numbers(cells(f'zh/{name}', 'markdown'))-known <= {'20'}
