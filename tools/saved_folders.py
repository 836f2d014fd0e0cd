"""Make the saved folders that tests/test_old_folders.py opens: a small trained model for each task, inputs beside it, and what it predicted on the day it was saved

`python tools/saved_folders.py` makes those that are missing. One that is there stays as it was written, since it stands for a folder that somebody saved with an older version:
where the format of a saved folder changes, add one under a new name, and keep the old ones."""
import contextlib, json, os, sys, tempfile
from pathlib import Path
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import pandas as pd, timm, torch
from timm.models import save_for_hf
from sft_nb.all import all_tasks, calibrate, load_data, load_predictor, save_predictor, sft_learner, small_whisper
from sft_nb.tasks.toys import make_toy

here = Path(__file__).resolve().parents[1]/'tests'/'fixtures'/'saved'

def small_resnet(folder):
    "timm's test network with fewer channels: 30 kB"
    sizes = dict(channels=(4,8,8,8), stem_width=4)
    torch.manual_seed(0)
    save_for_hf(timm.create_model('test_resnet', num_classes=2, **sizes), folder, model_args=sizes, safe_serialization=True)
    return str(folder)

def image(toy):
    return dict(source=toy['source'], checkpoint=small_resnet(Path('resnet'))), [dict(image=f'{k}/{i}.png') for k in ('round','square') for i in (0,1)], dict(epochs=60)

def text(toy):
    rows = pd.read_csv(toy['source'])
    return dict(source=rows), [dict(text=o) for o in (*rows.text[:2], *rows.text[-2:], 'a warm but sour day')], {}

def text_several_labels(toy):
    rows = pd.read_csv(toy['source'])
    rows['label'] = [f"{l}|{'long' if 'evening' in t else 'short'}" for t,l in zip(rows.text, rows.label)]
    return dict(source=rows, label_delim='|'), [dict(text=o) for o in (*rows.text[:2], *rows.text[-2:])], {}

def text_calibrated(toy):
    rows = pd.read_csv(toy['source'])
    other = pd.concat([rows, rows.iloc[:8].assign(label=rows.label[8:].tolist())], ignore_index=True) # a third is wrong: the model is too sure
    return dict(source=rows), [dict(text=o) for o in (*rows.text[:2], *rows.text[-2:])], dict(calibrate=other)

def translation(toy):
    rows = pd.read_csv(toy['source'])
    return dict(source=rows), [dict(source=o) for o in rows.source[::5]], dict(epochs=60)

def speech(toy):
    return dict(source=toy['source'], checkpoint=str(small_whisper(Path('small'), width=24))), [dict(audio=f'{i}.wav') for i in (0,4,8)], dict(epochs=60)

def image_text(toy):
    rows = pd.read_csv(toy['source'])
    items = rows.iloc[[0,2,7,8,15]][['image','text']].astype(object)
    return dict(source=toy['source'], checkpoint=f"{small_resnet(Path('small'))}+{toy['checkpoint'].split('+')[1]}"), items.where(items.notna(), None).to_dict('records'), {}

MADE = dict(image=image, text=text, text_several_labels=text_several_labels, text_calibrated=text_calibrated, translation=translation, speech=speech, image_text=image_text)

def trained(name):
    "(learner, inputs) of a small model that knows its rows by heart; made in the working folder"
    task = next(o for o in sorted(all_tasks(), key=len, reverse=True) if name.startswith(o))
    toy = make_toy(task, Path('toy'))
    load,items,how = MADE[name](toy)
    learn = sft_learner(load_data(task, **{'checkpoint':toy['checkpoint'], **toy['load'], 'batch_size':4, **load}), freeze=None)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(how.get('epochs', 20), 5e-3)
    if 'calibrate' in how: calibrate(learn, on=how['calibrate'])
    return learn,items

def expected(folder):
    "What the model in a folder says of the inputs beside it"
    model = load_predictor(folder/'model', device='cpu')
    out = dict(predict=model.predict(folder/'inputs.json').to_dict('records'))
    if model.vocab: out['predict_proba'] = model.predict_proba(folder/'inputs.json').to_dict('records')
    return out

def make(name, out):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work): # relative paths: the card names no folder of the machine
        learn,items = trained(name)
        save_predictor(learn, out/'model')
        for file in (o[k] for o in items for k in ('image','audio') if o.get(k)):
            (out/file).parent.mkdir(exist_ok=True)
            (out/file).write_bytes((Path('toy')/file).read_bytes())
    (out/'inputs.json').write_text(json.dumps(items, indent=1, ensure_ascii=False)+'\n')
    (out/'expected.json').write_text(json.dumps(expected(out), indent=1, ensure_ascii=False)+'\n')

if __name__=='__main__':
    for name in MADE:
        if (here/name).exists(): continue
        make(name, here/name)
        print(f"{name}: {sum(o.stat().st_size for o in (here/name).rglob('*') if o.is_file()):,} bytes", file=sys.stderr)
