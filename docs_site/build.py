"""The documentation site, in `_docs/`: `python -m docs_site.build`, or `make docs`

With Quarto where it is installed, else by pandoc; both from the notebooks that nbdev has processed and the same `_quarto.yml`."""
import argparse, functools, http.server, os, posixpath, re, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit
import jinja2, yaml
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.quarto_render import render_quarto
from nbdev.serve import proc_nbs
from .navigation import NAMES, names_page, SECTIONS, write_sidebar
from .overview import write_overviews
from .pages import PageError, pandoc, read_page, render
from .words import search_words

here = Path(__file__).parent

def process():
    "Notebooks as they are shown, the configuration and the page of names; returns their folder"
    cfg = get_config()
    refresh_quarto_yml()
    _build_modidx()
    write_sidebar(cfg.nbs_path)
    cache = proc_nbs(n_workers=0, force=True)
    (cache/NAMES).write_text(names_page(), encoding='utf8')
    write_overviews(cache, [d for d in SECTIONS if d])
    return cache

def _merge(a, b):
    for k,v in b.items(): a[k] = _merge(a[k], v) if isinstance(a.get(k), dict) and isinstance(v, dict) else v
    return a

def configuration(folder):
    "`_quarto.yml` with the files that it names"
    cfg = yaml.safe_load((folder/'_quarto.yml').read_text())
    for f in cfg.get('metadata-files', []): _merge(cfg, yaml.safe_load((folder/f).read_text()))
    return cfg

def theme(folder, cfg):
    "Colors of the light and the dark theme, from the SCSS files that `_quarto.yml` names"
    def colors(files):
        found = {}
        for f in (o for o in ([files] if isinstance(files, str) else files) if o.endswith('.scss')):
            found |= dict(re.findall(r'^\$([\w-]+):\s*([^;]+?)(?: !default)?;', (folder/f).read_text(), re.M))
        return '\n'.join(f'  --{k}: {v};' for k,v in found.items())
    light,dark = (colors(cfg['format']['html']['theme'][k]) for k in ('light', 'dark'))
    return f':root {{\n{light}\n}}\n:root[data-theme="dark"] {{\n{dark}\n}}\n'

class Site:
    "The pages, in the order of the sidebar, and how they are linked"
    def __init__(self, cache, out):
        self.cache,self.out,self.cfg = cache,out,configuration(cache)
        self.web = self.cfg['website']
        files = [p for p in sorted(cache.rglob('*')) if p.suffix in ('.ipynb', '.qmd') and not p.is_relative_to(out)]
        with ThreadPoolExecutor(os.cpu_count()) as pool: pages = list(pool.map(lambda p: read_page(p, cache), files))
        self.pages = {p.source.as_posix():p for p in pages}
        self.sidebar = [self.entry(o) for o in self.web['sidebar']['contents']]
        self.order = [href for o in self.sidebar for href in ([o['href']] if 'href' in o else [x['href'] for x in o['contents']])]
        if lost := {p.href for p in pages}^set(self.order): raise PageError(f'pages and sidebar differ: {sorted(lost)}')
        self.words = search_words(self.pages)

    def entry(self, o):
        "An entry of the sidebar or the navbar: its page and title"
        if isinstance(o, dict) and 'section' in o: return dict(section=o['section'], contents=[self.entry(x) for x in o['contents']])
        name,text = (o['href'], o.get('text')) if isinstance(o, dict) else (o, None)
        if ':' in name: return dict(href=name, text=text, icon=o.get('icon'))
        if name not in self.pages: raise PageError(f'_quarto.yml names {name}, which is not a page')
        return dict(href=self.pages[name].href, text=text or self.pages[name].title)

    def link(self, page, url):
        "A link to a notebook, or to this site's address, becomes one from page to page"
        home = self.web['site-url'].rstrip('/')+'/'
        if url.startswith(home): return posixpath.relpath(url.removeprefix(home) or 'index.html', posixpath.dirname(page.href) or '.')
        path,hash,at = url.partition('#')
        if not path.endswith(('.ipynb', '.qmd')) or urlsplit(url).scheme: return url
        source = posixpath.normpath(posixpath.join(page.source.parent.as_posix(), path))
        if source not in self.pages: raise PageError(f'{page.source} links to {url}, which is not a page')
        return posixpath.relpath(self.pages[source].href, posixpath.dirname(page.href) or '.')+hash+at

    def write(self):
        "All pages, pictures and assets"
        env = jinja2.Environment(loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool: list(pool.map(functools.partial(self.page, env.get_template('page.html')), self.pages.values()))
        for name,text in {'site.css': theme(self.cache, self.cfg)+(here/'site.css').read_text()+(self.cache/self.cfg['format']['html']['css']).read_text(),
                          'site.js': (here/'site.js').read_text(), 'llms.txt': (self.cache/'llms.txt').read_text()}.items():
            (self.out/name).write_text(text, encoding='utf8')
        if (self.cache/'images').exists(): shutil.copytree(self.cache/'images', self.out/'images')

    def page(self, template, page):
        html,md,headings = render(page, functools.partial(self.link, page))
        to = self.out/page.href
        to.parent.mkdir(parents=True, exist_ok=True)
        at,root = self.order.index(page.href),posixpath.relpath('.', posixpath.dirname(page.href) or '.')
        titles = {o['href']:o['text'] for s in self.sidebar for o in ([s] if 'href' in s else s['contents'])}
        turn = lambda i: dict(href=self.order[i], text=titles[self.order[i]]) if 0<=i<len(self.order) else None
        depth = self.cfg['format']['html']['toc-depth']
        desc = page.head.get('description', '')
        said = pandoc(desc, '-f', 'markdown', '-t', 'html5').strip().removeprefix('<p>').removesuffix('</p>') if desc else ''
        to.write_text(template.render(page=page, body=html, description=re.sub(r'</?a\b[^>]*>', '', said), summary=unescape(re.sub('<[^>]*>', '', said)), web=self.web, root=root,
            words=self.words.get(page.href, []), sidebar=self.sidebar, navbar=[self.entry(o) for o in self.web['navbar']['left']], tools=self.web['navbar']['tools'],
            toc=[h for h in headings if h[1] and 2<=h[0]<=depth], before=turn(at-1), after=turn(at+1)), encoding='utf8')
        (to.parent/f'{to.name}.md').write_text(f"# {page.head['title']}\n\n{md}", encoding='utf8')
        for name,data in page.files.items():
            (to.parent/name).parent.mkdir(exist_ok=True)
            (to.parent/name).write_bytes(data)

_tag = re.compile(r'<[^>]+>')
def _attributes(html, *names): return [unescape(v) for t in _tag.findall(html) for n in names for v in re.findall(rf'\s{n}="([^"]*)"', t)]

def check_links(out):
    "Every link within the site leads to a file, and to an anchor in it"
    pages = {p.relative_to(out).as_posix():p.read_text(encoding='utf8') for p in out.rglob('*.html') if 'pagefind' not in p.parts}
    anchors,bad = {k:set(_attributes(v, 'id')) for k,v in pages.items()},[]
    for name,html in pages.items():
        for url in _attributes(html, 'href', 'src'):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc: continue
            to = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path))) if parts.path else name
            if not (out/to).is_file() and not to.startswith('pagefind/'): bad.append(f'{name}: {url}, no such file')
            elif parts.fragment and unquote(parts.fragment) not in anchors.get(to, ()): bad.append(f'{name}: {url}, no such anchor')
    if bad: raise PageError(f'{len(bad)} links lead nowhere:\n'+'\n'.join(bad[:40]))

def with_pandoc(cache, out):
    "The site without Quarto"
    Site(cache, out).write()
    check_links(out)
    subprocess.run([sys.executable, '-m', 'pagefind', '--site', str(out), '--quiet', '--include-characters', '_', '--force-language', 'en'], check=True)

def build(quarto=None):
    "Build the site; `quarto` None: as it is installed"
    begun,cfg = time.time(),get_config()
    cache = process()
    new = cache/'_site'
    if quarto is None: quarto = shutil.which('quarto') is not None
    (render_quarto if quarto else with_pandoc)(cache, new)
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(new, cfg.doc_path)
    print(f"{len(list(cfg.doc_path.rglob('*.html')))} pages in {cfg.doc_path.name}/ by {'Quarto' if quarto else 'pandoc'}, {time.time()-begun:.0f} s")
    return cfg.doc_path

def serve(folder, port):
    "Show the site on this machine until interrupted"
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', port), handler) as s:
        print(f'http://127.0.0.1:{s.server_address[1]}/ (Ctrl-C ends it)')
        try: s.serve_forever()
        except KeyboardInterrupt: pass

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--pandoc', action='store_true', help='by pandoc, also where Quarto is installed')
    p.add_argument('--preview', type=int, metavar='PORT', help='then serve it on this port of this machine; 0: any free port')
    a = p.parse_args()
    try: site = build(False if a.pandoc else None)
    except PageError as e: sys.exit(f'docs: {e}')
    if a.preview is not None: serve(site, a.preview)
