"""Processors for `nbdev-proc-nbs`, named in `pyproject.toml`; they serve Quarto and pandoc alike

Nothing of a notebook is run: what is said of an exported name is looked up in the exported module."""
import importlib, inspect, json, posixpath, re
from functools import cache
from pathlib import Path
import yaml
from fastcore.docments import docments
from fastcore.nbio import md_frontmatter, mk_cell
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup
from nbdev.process import Processor

_heading = re.compile(r'\A\s*# .*\n+(?:> .*(?:\n|\Z))*')

class frontmatter(Processor):
    "Title and description as YAML; unlike nbdev's own, what else stands in the title's cell is kept"
    def begin(self):
        first = next((c for c in self.nb.cells if c.cell_type=='markdown' and md_frontmatter(c.source)), None)
        if first is None: raise ValueError(f'{self.nb.path_} has no cell that begins with a title, "# …"')
        head = md_frontmatter(re.match(_heading, first.source+'\n')[0])
        first.source = _heading.sub('', first.source+'\n').strip()
        head['output-file'] = nbpath2html(self.nb.path_).name
        self.nb.cells.insert(0, mk_cell(f'---\n{yaml.dump(head, allow_unicode=True)}---\n', 'raw'))
    def cell(self, cell):
        "Directives are nbdev's, not the page's: all of a text, the test flags of code"
        flags = '|'.join(get_config().tst_flags.split() or ['$'])
        cell.source = re.sub(r'\A(?:#\|.*\n?)+' if cell.cell_type=='markdown' else rf'(?m)^#\|\s*(?:{flags})\b.*\n?', '', cell.source)

class run_line(Processor):
    "Below the title of a tutorial or recipe: how to run it, and what it took when it was run last"
    def begin(self):
        cfg = get_config()
        name = Path(self.nb.path_).resolve().relative_to(cfg.nbs_path.resolve()).as_posix()
        if name.partition('/')[0] not in ('tutorials', 'recipes') or not any(c.cell_type=='code' for c in self.nb.cells): return
        place = f"{cfg.git_url.removeprefix('https://github.com/')}/blob/{cfg.branch}/nbs/{name}"
        text = f"*Run it yourself:* [open in Colab](https://colab.research.google.com/github/{place}) or [the notebook]({cfg.git_url.removesuffix('/')}/blob/{cfg.branch}/nbs/{name})."
        runs = json.loads((cfg.nbs_path/'runs.json').read_text())
        if o := runs.get(name):
            versions = ', '.join(f'{k} {o[k]}' for k in ('torch','fastai','transformers','timm'))
            text += f" Last run on {o['date']}, whole: {o['seconds']} seconds of one processor, {o['peak_mb']/1000:.1f} GB of memory ({versions})."
        self.nb.cells.insert(1, mk_cell(f'> {text}', 'markdown'))

class outside_links(Processor):
    "A relative link to a file of the repository that is not a page leads to the repository"
    def cell(self, cell):
        if cell.cell_type=='markdown': cell.source = re.sub(r'(\]\()(\.\./[^)\s]+)\)', self.link, cell.source)
    def link(self, m):
        cfg = get_config()
        place = posixpath.normpath(posixpath.join(Path(self.nb.path_).resolve().relative_to(cfg.nbs_path.resolve()).parent.as_posix(), m[2]))
        return f'{m[1]}{cfg.git_url}/blob/{cfg.branch}/{place.removeprefix("../")})' if place.startswith('../') else m[0]

@cache
def _module(name): return importlib.import_module(f'{get_config().lib_name}.{name}')

def _plain(o): return o.fget if isinstance(o, property) else inspect.unwrap(getattr(o, '__func__', o))

def _doc(symbol):
    "A docstring that is the symbol's own, not inherited"
    return inspect.cleandoc((vars(symbol).get('__doc__') if isinstance(symbol, type) else _plain(symbol).__doc__) or '')

def _type(o):
    "An annotation as it is written"
    if o in (inspect.Parameter.empty, type(None)): return ''
    return o if isinstance(o, str) else getattr(o, '__name__', None) if isinstance(o, type) else re.sub(r'\b(?:\w+\.)+(\w+)', r'\1', str(o))

def _value(o): return getattr(o, '__name__', None) or repr(o)

def _signature(symbol, name):
    "The call with its defaults, cut into lines where it is long"
    if isinstance(symbol, property): return name
    try: ps = list(inspect.signature(symbol).parameters.values())
    except (TypeError, ValueError): return name
    star,parts = any(p.kind==p.VAR_POSITIONAL for p in ps),[]
    for p in ps:
        if p.name=='self': continue
        if p.kind==p.KEYWORD_ONLY and not star: star,parts = True,[*parts, '*']
        mark = {p.VAR_POSITIONAL:'*', p.VAR_KEYWORD:'**'}.get(p.kind, '')
        parts.append(f'{mark}{p.name}' + ('' if p.default is p.empty else f'={_value(p.default)}'))
    short = f"{name}({', '.join(parts)})"
    return short if len(short)<90 else f'{name}(\n    ' + ',\n    '.join(parts) + ')'

def _cell(o): return str(o).replace('|', r'\|').replace('\n', ' ')

def _table(symbol, link):
    "One row a parameter: type, default, what its comment says; and what comes back"
    try: found = docments(symbol, full=True, returns=not isinstance(symbol, type))
    except (TypeError, ValueError, OSError): return ''
    empty = inspect.Parameter.empty
    given = {k:v for k,v in found.items() if k!='self' and (k!='return' or v.docment or v.anno is not empty)}
    if not any(v.docment for v in given.values()): return ''
    def row(k, v):
        kind = r' \| '.join(f'`{o}`' for o in _type(v.anno).split(' | ') if o)
        default = '' if k=='return' or v.default is empty else f'`{_cell(_value(v.default))}`'
        return f"| {'**returns**' if k=='return' else f'`{k}`'} | {link(kind)} | {default} | {link(_cell(v.docment or ''))} |"
    return '\n'.join(['| Parameter | Type | Default | What it is |', '|---|---|---|---|', *(row(k, v) for k,v in given.items())])

def _source(symbol):
    "Where the code stands on GitHub"
    cfg = get_config()
    try: path,(lines,at) = inspect.getsourcefile(symbol),inspect.getsourcelines(symbol)
    except (TypeError, OSError): return ''
    rel = path.replace('\\', '/').rpartition(f'/{cfg.lib_name}/')[2]
    return f'[source]({cfg.git_url}/blob/{cfg.branch}/{cfg.lib_name}/{rel}#L{max(at, 1)}-L{at+len(lines)-1}){{.source-link}}'

def _api(symbol, name, anchor, level, link):
    "Heading, signature, docstring and parameters of one name"
    code = _plain(symbol)
    parts = [f"{'#'*level} {name} {{#{anchor} .api}}", _source(code), f'```python\n{_signature(symbol, name)}\n```', link(_doc(symbol)), _table(code, link)]
    return '\n\n'.join(o for o in parts if o)

def _methods(cls):
    "Public methods that stand in the body of a class; those that are patched in have a place of their own"
    if not isinstance(cls, type): return
    first,last = (lambda lines, at: (at, at+len(lines)))(*inspect.getsourcelines(cls))
    for k,o in vars(cls).items():
        code = _plain(o.__func__ if isinstance(o, (classmethod, staticmethod)) else o)
        if k.startswith('_') or not inspect.isfunction(code) or code.__module__!=cls.__module__: continue
        if first <= code.__code__.co_firstlineno < last: yield k,o

def private_names(cell):
    "What begins with an underscore has no place on a page that a link could lead to"
    if cell.cell_type=='markdown': cell.source = re.sub(r'\[(`(?:[\w.]*\.)?_\w+(?:\(\))?`)\]\([^)]*\)', r'\1', cell.source)

def _shown_name(cell): return re.search(r'show_doc\((.*)\)', cell.source)[1]

class api_docs(Processor):
    "The signature, docstring and table of parameters of each exported name, as stored output"
    def begin(self):
        self.seen = set()
        self.anchors = {_shown_name(c).lower() for c in self.nb.cells if getattr(c, 'has_sd', False)}
        if not self.anchors: return
        page = nbpath2html(self.nb.path_).relative_to(get_config().nbs_path)
        self.names,self.links = dict(vars(_module('.'.join(page.with_suffix('').parts)))),NbdevLookup()
    def anchor(self, name):
        at = name.lower()
        while at in self.seen: at += '-1'
        self.seen.add(at)
        return at
    def text(self, name):
        symbol,link = eval(name, self.names),self.links.link_line
        yield _api(symbol, name, self.anchor(name), 3, link)
        for k,o in _methods(symbol):
            full = f'{name}.{k}'
            yield _api(o, full, self.anchor(full), 4, link) if _doc(o) else f'[]{{#{self.anchor(full)}}}'
    def aside(self, m):
        "A heading called as a function is leaves it the anchor"
        at = re.sub(r'[^\w.-]+', '-', m[1].strip().lower()).strip('-')
        return f'{m[0]} {{#about-{at}}}' if at in self.anchors else m[0]
    def cell(self, cell):
        if cell.cell_type=='markdown': cell.source = re.sub(r'(?m)^##+ ([^{\n]+)$', self.aside, cell.source)
        if not getattr(cell, 'has_sd', False): return
        if any(o.startswith('_') for o in _shown_name(cell).split('.')):
            # A method of a private class, or one that Python calls by itself, is not a name to look up
            cell.source,cell.outputs = '#| include: false',[]
            return
        md = '\n\n'.join(self.text(_shown_name(cell)))
        cell.outputs = [dict(output_type='display_data', metadata={}, data={'text/markdown': md})]
        cell.source = '#| echo: false\n#| output: asis'

# What a call of the package draws, in English and Chinese
DRAWN = {r'\bplot_curves\(':('Training and validation loss over the epochs, phase by phase', '各阶段的训练损失和验证损失'),
         r'\.confusion\(plot':('Confusion table: rows are labels, columns predictions', '混淆矩阵：行是标签，列是预测'),
         r'\.(?:show_worst|plot_top_losses)\(':('The rows with the largest loss, with label and prediction above each', '损失最大的样本，上方是标签和预测'),
         r'\.show_results\(':('Held-out rows with their label and prediction', '留出的样本及其标签和预测'),
         r'\.show_batch\(':('Examples from a batch, with their labels', '一个批次中的样本及其标签'),
         r'\blearning_curve\(':('Score over the number of labelled rows, with a forecast for twice as many', '得分随标注数量的变化，以及数量翻倍时的预测'),
         r'\.calibration\(':('Accuracy over confidence, beside the diagonal of perfect calibration', '准确率随置信度的变化，以及完全校准的对角线'),
         r"\['Residuals'\]":('Predictions over targets, and a histogram of the errors', '预测值随目标值的变化，以及误差的直方图')}

def _axes(source):
    "The title that a cell gives its plot, or what is drawn over what"
    named = lambda k, s: re.search(rf"""\b{k}=(['"])(.+?)\1""", s)
    for call in re.findall(r'\.set\((.*)\)', source):
        if title := named('title', call): return title[2]
        x,y = named('xlabel', call),named('ylabel', call)
        if x and y: return f'{y[2]} over {x[2]}'

def _sentence(text):
    "The first sentence of the last paragraph, without markup, code marks and asides"
    paragraphs = [o for o in re.split(r'\n\s*\n', text.strip()) if not re.match(r'[#|>:`!-]', o)]
    if not paragraphs: return ''
    plain = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', ' '.join(paragraphs[-1].split()))
    plain = re.sub(r'\s*[(（][^()（）]*[)）]', '', re.sub(r'[`*]', '', plain))
    return re.split(r'(?<=[^\d]\.)\s|(?<=[?!])\s|(?<=[。？！])', plain)[0].strip().rstrip('.:。：')

class picture_alt(Processor):
    "A picture without a description of its own: what the call draws, else the plot's title or axes, else the text before it"
    def begin(self): self.text,self.zh = '','zh' in Path(self.nb.path_).parts
    def cell(self, cell):
        if cell.cell_type=='markdown': self.text = cell.source
        if cell.cell_type!='code' or 'fig-alt:' in cell.source: return
        if not any(m.startswith('image/') for o in cell.outputs for m in o.get('data', {})): return
        drawn = next((o[self.zh] for k,o in DRAWN.items() if re.search(k, cell.source)), None)
        said = drawn or _axes(cell.source) or _sentence(self.text)
        if not said or re.search(r'[()]', said): raise ValueError(f'{self.nb.path_}: no words for the picture of this cell; give it a line "#| fig-alt: …":\n{cell.source}')
        said = said[0].upper()+said[1:]
        cell.source = f'#| fig-alt: {yaml.dump(said, width=10**6, allow_unicode=True, default_style=chr(34)).strip()}\n{cell.source}'
