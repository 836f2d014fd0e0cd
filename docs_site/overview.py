"The first page of each folder: a figure of the way of the data with this station in it, and its pages with what they say"
import json
from html import escape
from pathlib import Path
import yaml

# folder -> (title, what it does, what leaves it)
STATIONS = {'checkpoints':('Checkpoints', 'A reference such as `timm:…`, `hf:…`, `pip:…` or a folder becomes verified weights.', 'weights'),
            'data':('Data', 'Folders, tables and data sets become checked rows, and fastai DataLoaders.', 'DataLoaders'),
            'models':('Models', 'A network in named layer groups, with a new output layer on it.', 'layer groups'),
            'training':('Training', "fastai's Learner, with freezing that holds, a cache of what is frozen, schedules, adapters, and runs that go on after a crash.", 'Learner'),
            'evaluation':('Evaluation', 'All predictions with their rows: metrics with intervals, comparisons, slices, calibration.', 'Evaluation'),
            'inspection':('Inspection', 'The Inspector in a notebook, the page without a kernel, the report, and what speaks for a prediction.', 'Inspector'),
            'diagnosis':('Diagnosis', 'Is the data sound, would more rows help, which checkpoint to try.', 'findings'),
            'deployment':('Deployment', 'A saved folder without pickle, opened as a Predictor or exported to ONNX.', 'Predictor')}
OTHERS = {'tutorials':('Tutorials', 'From a first model to many machines, each on real data.'), 'recipes':('Recipes', 'Ten questions, each answered on one page that runs as it stands.'),
          'tasks':('Tasks', 'A kind of data is one notebook: its inputs, its target, its network. What it does not say, all tasks share.'),
          'core':('Core', 'What knows no kind of data, no network and no file format: errors, hashing, losses, metrics, processes.'),
          'zh':('中文', '快速上手、什么是监督微调、按问题找做法')}

def pages(folder):
    "(file, title, description) of the processed notebooks of a folder, in their order"
    for p in sorted(folder.glob('*.ipynb')):
        head = next(yaml.safe_load(''.join(c['source']).strip().strip('-')) for c in json.loads(p.read_text(encoding='utf8'))['cells'] if c['cell_type']=='raw')
        yield p.name, head['title'], head.get('description', '')

def _box(x, y, w, h, text, cls, small=''):
    lines = [f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" class="{cls}"/>', f'<text x="{x+w/2}" y="{y+h/2+(-2 if small else 5)}" class="{cls}">{escape(text)}</text>']
    if small: lines.append(f'<text x="{x+w/2}" y="{y+h/2+14}" class="small {cls}">{escape(small)}</text>')
    return ''.join(lines)

def figure(name, rooms):
    "The stations as an SVG picture, the one called `name` marked, with its rooms below it"
    w,gap,h = 104,14,50
    parts,names = [],list(STATIONS)
    for i,s in enumerate(names):
        x = i*(w+gap)
        parts.append(_box(x, 4, w, h, STATIONS[s][0], 'here' if s==name else 'station', '→ '+STATIONS[s][2]))
        if i: parts.append(f'<path d="M{x-gap+1} {4+h/2} h{gap-3}" class="way"/>')
    width,per = len(names)*(w+gap)-gap,6
    for i,r in enumerate(rooms): parts.append(_box((i%per)*(width+12)/per, 78+(i//per)*36, (width+12)/per-12, 28, r, 'room'))
    height = 78+36*(-(-len(rooms)//per)) if rooms else h+8
    alt = f"The way of the data: {', '.join(o[0] for o in STATIONS.values())}. {STATIONS[name][0]} has {', '.join(rooms)}."
    return f'<figure class="way wide"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}">{"".join(parts)}</svg></figure>'

def overview(folder):
    "The text of a folder's first page"
    title,what,*_ = STATIONS.get(folder.name) or OTHERS[folder.name]
    found = list(pages(folder))
    rooms = [Path(f).stem.split('_', 1)[1] for f,_,_ in found]
    picture = f'```{{=html}}\n{figure(folder.name, rooms)}\n```\n\n' if folder.name in STATIONS else ''
    table = '\n'.join(f"| [{t}]({f}) | {d} |".replace('\n', ' ') for f,t,d in found)
    return f"---\n{yaml.safe_dump(dict(title=title, description=what), allow_unicode=True)}---\n\n{picture}| Page | What it shows |\n|---|---|\n{table}\n"

def write_overviews(cache, folders):
    "`index.qmd` in each folder of the processed notebooks"
    for d in folders: (cache/d/'index.qmd').write_text(overview(cache/d), encoding='utf8')
