"The first page of each folder: a figure of the way of the data with this station in it, or of its pages in groups; and its pages with what they say"
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

# folder -> (its pages in groups, by the names of their files; whether one group leads to the next)
GROUPS = {'tutorials':({'Begin':'quick_start what_is_sft coming_from words', 'By kind of data':'stamps text translation speech image_text numbers chat tags sounds own_task',
                        'Understand':'how_much_to_freeze data_and_model chat_elsewhere', 'Use':'what_load_data_reads serving scaling trackers'}, True),
          'recipes':({'Few or rare rows':'few_pictures unbalanced_classes', 'Doubtful data':'noisy_labels near_duplicates',
                      'Texts and chat':'long_texts another_language chat_on_my_own_answers', 'Run and ship':'train_over_night a_model_for_the_phone', 'Something new':'my_own_data'}, False)}
# Tasks by what goes in, a row each, and what comes out, a column each
INPUTS = {'Picture':('image', '', ''), 'Text':('text', 'tokens', 'translation chat'), 'Picture and text':('image_text', '', ''), 'Sound':('audio', '', 'speech')}
TARGETS = {'Class':'or a number, but for sounds', 'Tag for each word':'names, parts of speech', 'Text':'translation, answer, transcript'}
FOR_EXAMPLES = 'small_nets toys demo_data'

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
    return _svg(width, height, alt, parts)

def _svg(width, height, alt, parts): return f'<figure class="way wide"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}">{"".join(parts)}</svg></figure>'
def _row(names, x, y, w): return [_box(x+i*w/len(names)+4, y, w/len(names)-8, 28, n.replace('_', ' '), 'room') for i,n in enumerate(names)]

def groups(groups, way):
    "Groups side by side with their pages below; one of more than five pages is two columns wide"
    wide = {k:2 if len(v)>5 else 1 for k,v in groups.items()}
    width,parts,x = 930,[],0
    for k,v in groups.items():
        w = width*wide[k]/sum(wide.values())
        if x and way: parts.append(f'<path d="M{x-5} 22 h10" class="way"/>')
        parts.append(_box(x+6, 4, w-12, 36, k, 'here'))
        for i in range(0, len(v), wide[k]): parts += _row(v[i:i+wide[k]], x+2, 52+i//wide[k]*36, w-4)
        x += w
    rows = max(-(-len(v)//wide[k]) for k,v in groups.items())
    return _svg(width, 52+36*rows, '; '.join(f"{k}: {', '.join(v)}" for k,v in groups.items()).replace('_', ' ')+'.', parts)

def grid():
    "Which task reads what and gives what"
    parts,first,w = [],170,250
    for j,(t,more) in enumerate(TARGETS.items()): parts.append(_box(first+j*w+4, 4, w-8, 42, '→ '+t, 'here', more))
    for i,(name,cells) in enumerate(INPUTS.items()):
        y = 56+i*40
        parts.append(_box(1, y, first-8, 32, name, 'station'))
        for j,tasks in enumerate(cells):
            if tasks: parts += _row(tasks.split(), first+j*w, y+2, w)
    y = 56+len(INPUTS)*40
    parts += [_box(1, y, first-8, 32, 'For examples', 'station'), *_row(FOR_EXAMPLES.split(), first, y+2, 3*w)]
    said = '; '.join(f"{k} to {t.lower()}: {c.replace(' ', ', ')}" for k,v in INPUTS.items() for t,c in zip(TARGETS, v) if c)
    return _svg(first+3*w, y+36, f"Tasks by input and target. {said}; for examples: {FOR_EXAMPLES.replace(' ', ', ')}.".replace('_', ' '), parts)

def drawing(name, rooms):
    "The figure of a folder; each of its pages has a place in it"
    if name in STATIONS: return figure(name, rooms)
    if name not in (*GROUPS, 'tasks'): return ''
    placed = [f for o in GROUPS[name][0].values() for f in o.split()] if name in GROUPS else ' '.join([*(c for v in INPUTS.values() for c in v), FOR_EXAMPLES]).split()
    if lost := set(placed)^set(rooms): raise ValueError(f'the figure of nbs/{name} and its pages differ: {sorted(lost)}; see {__file__}')
    return groups({k:v.split() for k,v in GROUPS[name][0].items()}, GROUPS[name][1]) if name in GROUPS else grid()

def overview(folder):
    "The text of a folder's first page"
    title,what,*_ = STATIONS.get(folder.name) or OTHERS[folder.name]
    found = list(pages(folder))
    rooms = [Path(f).stem.split('_', 1)[1] for f,_,_ in found]
    drawn = drawing(folder.name, rooms)
    picture = f'```{{=html}}\n{drawn}\n```\n\n' if drawn else ''
    table = '\n'.join(f"| [{t}]({f}) | {d} |".replace('\n', ' ') for f,t,d in found)
    return f"---\n{yaml.safe_dump(dict(title=title, description=what), allow_unicode=True)}---\n\n{picture}| Page | What it shows |\n|---|---|\n{table}\n"

def write_overviews(cache, folders):
    "`index.qmd` in each folder of the processed notebooks"
    for d in folders: (cache/d/'index.qmd').write_text(overview(cache/d), encoding='utf8')
