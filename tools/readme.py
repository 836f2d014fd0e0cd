"README.md from `nbs/index.ipynb` by pandoc: `python tools/readme.py` writes it"
import json, sys
from pathlib import Path
import pypandoc
from nbdev.config import get_config
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, hide_, hide_line, rm_export, strip_ansi
from nbdev.readme_filter import rewrite_links

root = Path(__file__).resolve().parents[1]

def notebook(path):
    "The notebook at `path` as it is shown: what is hidden and all directives taken out"
    proc = NBProcessor(path, procs=[strip_ansi, hide_line, rm_export, clean_magics, hide_], rm_directives=True)
    proc.process()
    cells = [{**o, 'metadata':{}, 'source':o.source} for o in proc.nb.cells if o.source.strip()]
    kernel = dict(name='python3', language='python', display_name='python3')
    return json.dumps(dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=kernel, language_info=dict(name='python')), cells=cells))

def place_images(blocks):
    "Pictures stand beside the notebook; README.md is one folder up"
    todo = [blocks]
    while todo:
        o = todo.pop()
        if isinstance(o, dict):
            if o.get('t')=='Image' and '://' not in o['c'][2][0]: o['c'][2][0] = 'nbs/'+o['c'][2][0]
            todo += o.values()
        elif isinstance(o, list): todo += o

def readme(root=root):
    "The text of README.md; links to other notebooks lead to their pages"
    doc = json.loads(pypandoc.convert_text(notebook(root/'nbs/index.ipynb'), 'json', format='ipynb'))
    rewrite_links(doc['blocks'], get_config(root).doc_url)
    place_images(doc['blocks'])
    text = pypandoc.convert_text(json.dumps(doc), 'gfm-raw_html', format='json', extra_args=['--wrap=preserve'])
    return '<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook -->\n\n' + text.replace('\r\n', '\n')

if __name__=='__main__':
    (root/'README.md').write_text(readme(), encoding='utf8', newline='\n')
    sys.stdout.write('README.md written\n')
