"""A processed notebook → markdown as Quarto reads it → HTML and plain markdown, by pandoc

What Quarto would do and this does not is an error that names the page; nothing is left out silently."""
import base64, html, json, re, subprocess
from dataclasses import dataclass, field
from pathlib import Path
import pypandoc, yaml

OPTIONS = set('echo output include eval label fig-cap fig-alt tbl-cap code-fold code-summary warning'.split())
CALLOUTS = {'note':'Note', 'tip':'Tip', 'warning':'Warning', 'important':'Important', 'caution':'Caution'}
DIVS = {'cell', 'cell-output', 'panel-tabset', 'callout', 'source-link'}
IMAGES = {'image/png':'png', 'image/jpeg':'jpg', 'image/svg+xml':'svg', 'image/gif':'gif'}
WIDGET = 'application/vnd.jupyter.widget-view+json'
READER = 'markdown+lists_without_preceding_blankline-tex_math_single_backslash'

class PageError(Exception): "A page that cannot be shown as Quarto would show it"

@dataclass
class Page:
    "One page of the site"
    source:Path # File below the folder of processed notebooks
    head:dict # title, description, output-file
    markdown:str # As Quarto reads it
    files:dict = field(default_factory=dict) # Name of a picture -> bytes; they stand beside the page

    @property
    def title(self): return self.head['title'].replace('`', '')
    @property
    def heading(self): return re.sub('`([^`]+)`', r'<code>\1</code>', html.escape(self.head['title'], quote=False))
    @property
    def href(self): return (self.source.parent/self.head.get('output-file', f'{self.source.stem}.html')).as_posix()

def _text(o): return o if isinstance(o, str) else ''.join(o)
def _fence(s): return '`'*max(3, 1+max((len(m) for m in re.findall('`+', s)), default=0))
def _block(s, attrs): return f'{_fence(s)} {{{attrs}}}\n{s.rstrip()}\n{_fence(s)}'
def _quote(s): return json.dumps(s, ensure_ascii=False)

def _options(source, where):
    "Quarto's options at the top of a cell, and the rest of it"
    lines = source.splitlines()
    n = next((i for i,o in enumerate(lines) if not o.startswith('#|')), len(lines))
    opts = yaml.safe_load('\n'.join(o[2:].removeprefix(' ') for o in lines[:n])) or {}
    if not isinstance(opts, dict) or set(opts)-OPTIONS: raise PageError(f'{where}: unknown option of a cell in {lines[:n]}. Known: {", ".join(sorted(OPTIONS))}')
    return opts,'\n'.join(lines[n:]).strip('\n')

class _Writer:
    "Cells → markdown, pictures kept aside"
    def __init__(self, source): self.source,self.files = source,{}

    def picture(self, data, kind, opts):
        name = f'{self.source.stem}_files/{len(self.files)+1}.{IMAGES[kind]}'
        self.files[name] = _text(data).encode() if kind=='image/svg+xml' else base64.b64decode(_text(data))
        label,cap = opts.get('label', ''),opts.get('fig-cap', '')
        return f"![{cap}]({name}){{{f'#{label} ' if label.startswith('fig-') else ''}alt={_quote(opts.get('fig-alt') or cap)}}}"

    def shown(self, data, opts, where):
        "The richest form of an output that a page can show"
        if 'text/html' in data and WIDGET not in data: return _block(_text(data['text/html']), '=html')
        for kind in IMAGES:
            if kind in data: return self.picture(data[kind], kind, opts)
        if WIDGET in data: return f"::: {{.callout-note}}\nInteractive in a notebook: `{_text(data.get('text/plain', 'a widget'))}`\n:::"
        if 'text/markdown' in data: return _text(data['text/markdown'])
        if 'text/latex' in data: return _text(data['text/latex'])
        if 'text/plain' in data: return _block(_text(data['text/plain']), '.output')
        raise PageError(f'{where}: no form of an output can be shown: {sorted(data)}')

    def output(self, o, opts, where):
        kind = o['output_type']
        if kind=='stream': return _block(_text(o['text']), f".output .{o['name']}")
        if kind=='error': raise PageError(f"{where}: a stored output is an error: {o.get('evalue')}")
        return self.shown(o['data'], opts, where)

    def code(self, cell, where):
        opts,source = _options(_text(cell['source']), where)
        if opts.get('include') is False: return ''
        parts = [_block(source, '.python .code')] if source and opts.get('echo', True) else []
        if parts and opts.get('code-fold'):
            head = f"<details{' open' if opts['code-fold']=='show' else ''}><summary>{opts.get('code-summary', 'Code')}</summary>"
            parts = [_block(head, '=html'), *parts, _block('</details>', '=html')]
        outs = [] if opts.get('output') is False else [self.output(o, opts, where) for o in cell.get('outputs', [])]
        if opts.get('output')=='asis': return '\n\n'.join(parts+outs)
        if str(opts.get('label', '')).startswith('tbl-'): outs = [f"::: {{#{opts['label']}}}", *outs, opts.get('tbl-cap', ''), ':::']
        shown = [f'::: {{.cell-output}}\n{o}\n:::' for o in outs] if not str(opts.get('label', '')).startswith('tbl-') else outs
        return '::: {.cell}\n' + '\n\n'.join(parts+shown) + '\n:::' if parts or shown else ''

def _head(text): return yaml.safe_load(text.strip().strip('-'))

def read_page(path, root):
    "A processed notebook, or a markdown file with YAML on top"
    source,text = path.relative_to(root),path.read_text(encoding='utf8')
    if path.suffix!='.ipynb':
        _,head,body = text.split('---\n', 2)
        return Page(source, _head(head), body)
    writer,parts,head = _Writer(source),[],None
    for i,c in enumerate(json.loads(text)['cells']):
        where = f'{source}, cell {i}'
        if c['cell_type']=='raw': head = _head(_text(c['source']))
        elif c['cell_type']=='code': parts.append(writer.code(c, where))
        else: parts.append(_text(c['source']))
    return Page(source, head, '\n\n'.join(o for o in parts if o.strip()), writer.files)

def pandoc(text, *args):
    "Run pandoc; a warning is an error"
    r = subprocess.run([pypandoc.get_pandoc_path(), '--fail-if-warnings', *args], input=text, capture_output=True, text=True, encoding='utf8')
    if r.returncode: raise PageError(f'pandoc {" ".join(args)}: {r.stderr.strip()}')
    return r.stdout

def plain(node):
    "The text in a piece of pandoc's tree"
    if isinstance(node, list): return ''.join(map(plain, node))
    if not isinstance(node, dict): return ''
    t,c = node['t'],node.get('c')
    if t in ('Str',): return c
    if t in ('Space', 'SoftBreak', 'LineBreak'): return ' '
    if t in ('Code', 'Math', 'RawInline'): return c[1]
    return plain(c)

class _Tree:
    "What Quarto adds to pandoc's markdown: callouts, tabs, numbered figures, tables and equations, links between pages"
    kinds = {'fig':'Figure', 'tbl':'Table', 'eq':'Equation', 'sec':'Section', 'lst':'Listing'}

    def __init__(self, page, link): self.page,self.link,self.labels,self.headings,self.tabs = page,link,{},[],0
    def fail(self, what): raise PageError(f'{self.page.source}: {what}')

    def walk(self, o, f):
        "A tree with `f` applied to each element, from the inside out; a list takes the place of its element"
        if isinstance(o, list):
            out = []
            for x in o:
                y = self.walk(x, f)
                out.extend(y) if isinstance(x, dict) and isinstance(y, list) else out.append(y)
            return out
        if not isinstance(o, dict): return o
        o = {k:self.walk(v, f) for k,v in o.items()}
        return f(o) if 't' in o else o

    def number(self, o):
        "Give numbers to what has a label"
        attr = {'Figure':0, 'Div':0, 'Header':1, 'Span':0}.get(o['t'])
        name = o['c'][attr][0] if attr is not None else ''
        kind = name.partition('-')[0]
        if kind in self.kinds:
            n = 1+sum(k.startswith(kind+'-') for k in self.labels)
            self.labels[name] = plain(o['c'][2]) if kind=='sec' else f'{self.kinds[kind]} {n}'
        return o

    def equation(self, o):
        "`$$…$$ {#eq-x}` becomes a span with the label"
        if o['t'] not in ('Para', 'Plain'): return o
        out = []
        for x in o['c']:
            m = re.fullmatch(r'\{#(eq-[\w-]+)\}', x['c']) if x['t']=='Str' else None
            if not m: out.append(x); continue
            while out and out[-1]['t'] in ('Space', 'SoftBreak'): out.pop()
            if not out or out[-1]['t']!='Math': self.fail(f'{m[0]} does not stand after an equation')
            out[-1] = dict(t='Span', c=[[m[1], ['equation'], []], [out[-1]]])
        return {**o, 'c':out}

    def apply(self, o): return f(o['c'], o) if (f := getattr(self, o['t'], None)) else o

    def Header(self, c, o):
        text,api = plain(c[2]),'api' in c[1][1]
        self.headings.append((c[0], c[1][0], text, api))
        # A method is a word of its own in the search index, not only with its class
        if api: c[1][2] += [['data-name', text.rpartition('.')[2]], ['data-pagefind-index-attrs', 'data-name']]
        return o

    def Div(self, c, o):
        (name,classes,kv),body = c
        kind = next((x.removeprefix('callout-') for x in classes if x.startswith('callout-')), None)
        if kind is not None: return self.callout(kind, name, dict(kv), body)
        if 'panel-tabset' in classes: return self.tabset(body)
        if name.startswith('tbl-'): return dict(t='Div', c=[[name, ['numbered'], []], [*body[:-1], _para(f'{self.labels[name]}: ', body[-1]['c'])]])
        if set(classes)-DIVS: self.fail(f'a block of class {sorted(set(classes)-DIVS)}, which only Quarto knows')
        return o

    def callout(self, kind, name, kv, body):
        if kind not in CALLOUTS: self.fail(f'callout-{kind}. Known: {", ".join(CALLOUTS)}')
        title = kv.get('title') or CALLOUTS[kind]
        if body and body[0]['t']=='Header': title,body = plain(body[0]['c'][2]),body[1:]
        self.headings = [h for h in self.headings if h[2]!=title]
        head = dict(t='Div', c=[['', ['callout-title'], []], [_para(title)]])
        return dict(t='Div', c=[[name, ['callout', f'callout-{kind}'], [['role','note']]], [head, *body]])

    def tabset(self, body):
        "Headings and what follows them as radio buttons and panels, which need no script"
        level,self.tabs,out = body[0]['c'][0] if body and body[0]['t']=='Header' else self.fail('a tabset that does not begin with a heading'),self.tabs+1,[]
        panels = []
        for o in body:
            if o['t']=='Header' and o['c'][0]==level: panels.append((plain(o['c'][2]), []))
            else: panels[-1][1].append(o)
        self.headings = [h for h in self.headings if h[2] not in [n for n,_ in panels]]
        for i,(n,_) in enumerate(panels):
            at = f'tabs{self.tabs}-{i}'
            out.append(_raw(f'<input type="radio" name="tabs{self.tabs}" id="{at}"{" checked" if not i else ""}><label for="{at}">{html.escape(n)}</label>'))
        out += [dict(t='Div', c=[['', ['tab'], []], blocks]) for _,blocks in panels]
        return dict(t='Div', c=[['', ['tabs'], []], out])

    def Figure(self, c, o):
        (name,_,_),caption,_ = c
        if name in self.labels: caption[1][:1] = [_para(f'{self.labels[name]}: ', caption[1][0]['c'])] if caption[1] else [_para(self.labels[name])]
        return o

    def Image(self, c, o):
        attr,alt,_ = c
        if not plain(alt).strip() and not dict(attr[2]).get('alt', '').strip(): self.fail(f'the picture {c[2][0]} has no description')
        return o

    def Cite(self, c, o):
        "A reference to what has a number; any other @word is just text, as for Quarto where there is no bibliography"
        if not any(x['citationId'].partition('-')[0] in self.kinds for x in c[0]): return c[1]
        links = []
        for x in c[0]:
            name = x['citationId']
            if name not in self.labels: self.fail(f'@{name} refers to nothing on the page')
            links += [dict(t='Str', c=', ')]*bool(links) + [dict(t='Link', c=[['', [], []], [dict(t='Str', c=self.labels[name])], ['#'+name, '']])]
        return links

    def Link(self, c, o):
        c[2][0] = self.link(c[2][0])
        return o

    def Table(self, c, o):
        c[2] = [[align, dict(t='ColWidthDefault')] for align,_ in c[2]]
        return o

    def RawBlock(self, c, o):
        if c[0] not in ('html', 'html5'): self.fail(f'raw text of format {c[0]!r}')
        return o
    RawInline = RawBlock

    def Str(self, c, o):
        if '{{<' in c or ':::' in c: self.fail(f'{c!r}, which only Quarto knows')
        return o

def _raw(s): return dict(t='RawBlock', c=['html', s])
def _para(text, more=()): return dict(t='Para', c=[*([dict(t='Str', c=text)] if text else []), *more])

def render(page, link):
    "(HTML of the body, plain markdown, headings as (level, id, text, whether it is a name))"
    doc = json.loads(pandoc(page.markdown, '-f', READER, '-t', 'json'))
    tree = _Tree(page, link)
    blocks = tree.walk(doc['blocks'], tree.equation)
    tree.walk(blocks, tree.number)
    blocks = tree.walk(blocks, tree.apply)
    doc = json.dumps({**doc, 'blocks':blocks})
    html = pandoc(doc, '-f', 'json', '-t', 'html5', '--mathml', '--wrap=none', '--syntax-highlighting=kate')
    return html,pandoc(doc, '-f', 'json', '-t', 'gfm-raw_html+tex_math_dollars', '--wrap=none'),tree.headings
