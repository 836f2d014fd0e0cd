"README.md from `nbs/index.ipynb` by pandoc, and the addresses of `settings.ini` where they are needed: `python tools/readme.py` writes both"
import json, posixpath, re, sys
from configparser import ConfigParser
from pathlib import Path
import pypandoc
from tutorials import pages, with_install
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, hide_, hide_line, rm_export, strip_ansi

root = Path(__file__).resolve().parents[1]

def notebook(path):
    "The notebook at `path` as it is shown: what is hidden and all directives taken out"
    proc = NBProcessor(path, procs=[strip_ansi, hide_line, rm_export, clean_magics, hide_], rm_directives=True)
    proc.process()
    cells = [{**o, 'metadata':{}, 'source':o.source} for o in proc.nb.cells if o.source.strip()]
    kernel = dict(name='python3', language='python', display_name='python3')
    return json.dumps(dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=kernel, language_info=dict(name='python')), cells=cells))

def from_root(blocks):
    "Links and pictures are relative to the notebook; README.md is one folder up"
    todo = [blocks]
    while todo:
        o = todo.pop()
        if isinstance(o, dict):
            if o.get('t') in ('Image', 'Link') and not re.match(r'[a-z]+:|#', o['c'][2][0]): o['c'][2][0] = posixpath.normpath('nbs/'+o['c'][2][0])
            todo += o.values()
        elif isinstance(o, list): todo += o

def readme(root=root):
    "The text of README.md"
    doc = json.loads(pypandoc.convert_text(notebook(root/'nbs/index.ipynb'), 'json', format='ipynb'))
    from_root(doc['blocks'])
    text = pypandoc.convert_text(json.dumps(doc), 'gfm-raw_html', format='json', extra_args=['--wrap=preserve'])
    return '<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook -->\n\n' + text.replace('\r\n', '\n')

def with_addresses(root=root):
    "File -> its text with the addresses of `settings.ini`"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf8')
    repo,site = (cfg['DEFAULT'][k] for k in ('repository', 'site'))
    places = {'pyproject.toml':((r'(?m)^Repository = ".*"', f'Repository = "{repo}"'), (r'(?m)^Documentation = ".*"', f'Documentation = "{site}/"')),
              '_quarto.yml':((r'(- icon: github\n\s+href: ).*', rf'\g<1>{repo}'),)}
    for name,rules in places.items():
        text = (root/name).read_text(encoding='utf8')
        for pattern,new in rules: text = re.sub(pattern, new, text)
        yield root/name, text
    for page in pages():
        if text := with_install(page.read_text(encoding='utf8')): yield page, text

if __name__=='__main__':
    for path,text in with_addresses(): path.write_text(text, encoding='utf8', newline='\n')
    (root/'README.md').write_text(readme(), encoding='utf8', newline='\n')
    sys.stdout.write('README.md written\n')
