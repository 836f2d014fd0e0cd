"Every source gives the same rows; splits, groups, subsamples, folds"
import json
import numpy as np, pandas as pd, pytest
from PIL import Image
from sft_nb.core.basics import CheckpointError, DataError, TaskError
from sft_nb.data.kinds import TextInput, TextTarget
from sft_nb.data.task import get_task
from sft_nb.data.problems import BadRows
from sft_nb.data.rows import read_rows
from sft_nb.data.spec import data_summary, DataSpec
from sft_nb.data.splits import fold_specs
from sft_nb.data.load import load_data, make_loaders, prepare_rows

NET = dict(checkpoint='timm:test_resnet', pretrained=False, augment=False)
IMAGE = get_task('image')

@pytest.fixture
def pets(tmp_path):
    for k in ('cat','dog'):
        for i in range(10):
            (tmp_path/'pets'/k).mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8+i,8), (i*20, 0, 255*(k=='cat'))).save(tmp_path/'pets'/k/f'{i}.png')
    return tmp_path/'pets'

@pytest.fixture
def frame(pets): return pd.DataFrame([dict(image=f'pets/{k}/{i}.png', label=k, age=i) for k in ('cat','dog') for i in range(10)])

def load(source, **kw): return load_data('image', source, **{**NET, **kw})

def pixels(dls): return [tuple(x[:,0,0].tolist()) for x,_ in dls.valid for x in x]

@pytest.mark.parametrize('kind', ['csv','tsv','semicolon','jsonl','ndjson','json','parquet','frame','dataset','bytes','dicts'])
def test_every_source_gives_the_same(pets, frame, kind, monkeypatch):
    home = pets.parent
    f = home/f"t.{kind if kind in ('csv','tsv','jsonl','ndjson','json','parquet') else 'csv'}"
    whole = frame.assign(image=[str(home/o) for o in frame.image])
    if kind=='csv': frame.to_csv(f, index=False, encoding='utf-8-sig')
    elif kind in ('tsv','semicolon'): frame.to_csv(f, index=False, sep='\t' if kind=='tsv' else ';')
    elif kind in ('jsonl','ndjson'): frame.to_json(f, orient='records', lines=True)
    elif kind=='json': frame.to_json(f, orient='records')
    elif kind=='parquet': frame.to_parquet(f)
    elif kind=='frame': f = whole
    elif kind=='dicts': f = whole.to_dict('records')
    else: f = dataset(whole, kind)
    dls,want = load(f),load(pets)
    assert dls.vocab==['cat','dog'] and dls.sft.rows.label.tolist()==want.sft.rows.label.tolist()
    assert pixels(dls)==pixels(want)
    if kind in ('csv','tsv','jsonl','json','parquet'): assert dls.sft.rows.item[0]=='pets/cat/0.png'
    if kind not in ('bytes',): assert dls.sft.rows.age.astype(int).tolist()==[*range(10)]*2

def dataset(frame, kind):
    from datasets import ClassLabel, Dataset, Features, Image as HFImage, Value
    features = Features(image=HFImage(), label=ClassLabel(names=['cat','dog']), age=Value('int64'))
    cells = [dict(bytes=open(p, 'rb').read(), path=None) for p in frame.image] if kind=='bytes' else list(frame.image)
    return Dataset.from_dict(dict(image=cells, label=[int(o=='dog') for o in frame.label], age=list(frame.age)), features=features)

def test_dataset_dict(frame, pets):
    from datasets import DatasetDict
    whole = frame.assign(image=[str(pets.parent/o) for o in frame.image])
    dss = DatasetDict({k:dataset(whole.iloc[i::3].reset_index(drop=True), 'paths') for i,k in enumerate(('train','validation','test'))})
    dls = load(dss)
    assert [len(dls.sft.split(s)) for s in ('train','valid','test')]==[7,7,6] and dls.vocab==['cat','dog'] and len(dls.loaders)==3

def test_dataset_with_a_broken_picture(frame, pets):
    (pets/'cat/3.png').write_bytes(b'xyz')
    whole = frame.assign(image=[str(pets.parent/o) for o in frame.image])
    with pytest.raises(BadRows, match='row 3: not a picture'): load(dataset(whole, 'bytes'))

def test_folder_of_splits(pets):
    top = pets.parent/'all'
    for s in ('train','val','test'):
        for k in ('cat','dog'):
            (top/s/k).mkdir(parents=True)
            for i in range(2): (top/s/k/f'{i}.png').write_bytes((pets/k/f'{i}.png').read_bytes())
    spec = load(top).sft
    assert data_summary(spec).to_dict('list')==dict(train=[2,2], valid=[2,2], test=[2,2], all=[6,6])
    assert spec.rows.item[0]=='test/cat/0.png'
    with pytest.raises(DataError, match='validation rows of its own'): load(top, valid=pets)

def test_classes_that_are_called_like_splits(pets):
    (pets/'cat').rename(pets/'train')
    assert load(pets).vocab==['dog','train']

def test_what_is_passed_over(pets, capsys):
    (pets/'cat/note.txt').write_text(''); (pets/'logo.svg').write_text(''); (pets/'stray.png').write_bytes((pets/'dog/0.png').read_bytes())
    (pets/'.hidden').mkdir(); (pets/'cat/.x.png').write_text(''); (pets/'__MACOSX/cat').mkdir(parents=True); (pets/'__MACOSX/cat/0.png').write_text('')
    (pets/'cat/Thumbs.db').write_text(''); (pets/'cat/deep').mkdir(); (pets/'dog/9.png').rename(pets/'cat/deep/9.png')
    spec = load(pets).sft
    assert data_summary(spec)['all'].to_dict()==dict(cat=11, dog=9) and 'cat/deep/9.png' in set(spec.rows.item)
    err = capsys.readouterr().err
    assert err==f"Skipped 3 files in {pets} that are not pictures of a class (1 .svg, 1 outside of the class folders, 1 .txt)\n"

def test_links_that_turn_in_circles(pets):
    (pets/'cat/again').symlink_to(pets, target_is_directory=True)
    assert len(load(pets).sft.rows)==20

def test_stratified_and_seeded(pets, frame):
    for i in range(10): (pets/f'dog/{i}.png').rename(pets/f'cat/d{i}.png') if i<6 else None
    a,b,c = (load(pets, seed=s).sft for s in (1,1,2))
    assert data_summary(a).to_dict('list')==dict(train=[13,3], valid=[3,1], all=[16,4])
    assert a.rows.split.tolist()==b.rows.split.tolist()!=c.rows.split.tolist()

@pytest.mark.parametrize('valid', [.01,.2,.5,.99])
def test_both_sides_have_every_class(pets, valid):
    table = data_summary(load(pets, valid=valid))
    assert (table>0).all(axis=None)

def test_validation_from_a_path(pets, frame):
    held = pets.parent/'held.csv'
    frame.iloc[[0,15]].to_csv(held, index=False)
    frame.drop(index=[0,15]).to_csv(pets.parent/'t.csv', index=False)
    spec = load(pets.parent/'t.csv', valid=held).sft
    assert spec.split('valid').item.tolist()==['held.csv/pets/cat/0.png','held.csv/pets/dog/5.png']
    spec = load(pets.parent/'t.csv', valid=frame.iloc[[0,15]].assign(image=lambda d: [str(pets.parent/o) for o in d.image])).sft
    assert len(spec.split('valid'))==2

def test_split_column(pets, frame):
    f = pets.parent/'t.csv'
    frame.assign(split=['train','Train','dev','test','train']*4).to_csv(f, index=False)
    spec = load(f).sft
    assert spec.rows.split.tolist()==['train','train','valid','test','train']*4
    frame.assign(split=['train','train','train','test','train']*4).to_csv(f, index=False)
    spec = load(f).sft
    assert spec.rows.split.value_counts().to_dict()==dict(train=13, test=4, valid=3)
    assert (spec.rows.split.to_numpy()[3::5]=='test').all()

def test_groups_stay_together(pets, frame):
    f = pets.parent/'t.csv'
    frame.assign(scene=[i//2 for i in range(20)]).to_csv(f, index=False)
    for seed in range(5):
        spec = load(f, group='scene', valid=.2, seed=seed).sft
        assert spec.has_group and spec.rows.groupby('group').split.nunique().max()==1
        assert data_summary(spec)['valid'].tolist()==[2,2]
        for fold in fold_specs(spec, 5): assert fold.rows.groupby('group').split.nunique().max()==1
    frame.assign(scene=1).to_csv(f, index=False)
    with pytest.raises(DataError, match='All 20 rows are of one group'): load(f, group='scene')
    frame.assign(scene=frame.label).to_csv(f, index=False)
    with pytest.raises(DataError, match='no group can be held out'): load(f, group='scene')

def test_max_items(pets, capsys):
    spec = load(pets, max_items=8).sft
    assert data_summary(spec)['all'].tolist()==[4,4]
    assert capsys.readouterr().err=="Took 8 of 20 rows (max_items=8), each class in proportion\n"
    assert load(pets, max_items=8).sft.rows.item.tolist()==spec.rows.item.tolist()!=load(pets, max_items=8, seed=1).sft.rows.item.tolist()
    assert len(load(pets, max_items=100).sft.rows)==20
    with pytest.raises(DataError, match='max_items must be at least 4 for 2 classes, got 3'): load(pets, max_items=3)
    for n in (0,1.5):
        with pytest.raises(DataError, match='max_items'): load(pets, max_items=n)

def test_exclude(pets):
    assert len(load(pets, exclude=['cat/0.png','dog/3.png']).sft.rows)==18
    assert load(pets, exclude=np.arange(20)<5).sft.rows.item[0]=='cat/5.png'
    with pytest.raises(DataError, match=r"names 'cat/x\.png', which is not an item\. Did you mean"): load(pets, exclude=['cat/x.png'])
    with pytest.raises(DataError, match='exclude must have one value per row, 20, got 3'): load(pets, exclude=[True]*3)

def test_labels_are_text(pets, frame):
    for labels in ([1,2],[1.,2.],['1','2']):
        whole = frame.assign(image=[str(pets.parent/o) for o in frame.image], label=[labels[0]]*10+[labels[1]]*10)
        assert load(whole).vocab==['1','2']
    whole['label'] = [['10','9','-1'][i%3] for i in range(20)]
    assert load(whole).vocab==['-1','9','10']
    whole['label'] = [True]*10+[False]*10
    assert load(whole).vocab==['False','True']
    (pets.parent/'t.csv').write_text(frame.assign(label=[['NA','007'][i%2] for i in range(20)]).to_csv(index=False))
    assert load(pets.parent/'t.csv').vocab==['007','NA']

def test_several_labels_by_lists(pets, frame):
    whole = frame.assign(image=[str(pets.parent/o) for o in frame.image], label=[[['a','b'],['b'],[],['c','a']][i%4] for i in range(20)])
    spec = load(whole).sft
    assert spec.multi_label and spec.vocab==['a','b','c']
    assert data_summary(spec)['all'].tolist()==[10,10,5] and (data_summary(spec)>0).all(axis=None)
    whole['label'] = [['a; b','b','','c'][i%4] for i in range(20)]
    with pytest.raises(BadRows, match='row 2: empty label'): load(whole, label_delim=';')
    whole.loc[whole.label=='', 'label'] = 'c'
    assert load(whole, label_delim=';').sft.rows.label[0]==['a','b']

def test_every_class_of_several_labels_is_trained():
    rows = pd.DataFrame(dict(text=[f'{i}' for i in range(60)], label=[['x']+[f'rare{i//2}'] if i<6 else ['x','y'][:1+i%2] for i in range(60)]))
    spec = prepare_rows(DataSpec(words(), read_rows(rows, words()), multi_label=True), .5)
    assert set(spec.rows[spec.rows.split=='train'].label.explode())==set(spec.vocab)

def words():
    return IMAGE.copy(name='words', inputs=(TextInput(),), check_rows=lambda rows,spec: [])

def test_folds(pets):
    spec = load(pets).sft
    folds = list(fold_specs(spec, 5))
    assert (sum((f.rows.split=='valid').astype(int) for f in folds)==1).all()
    assert all(data_summary(f)['valid'].tolist()==[2,2] for f in folds)
    assert len(make_loaders(folds[0]).valid_ds)==4

def test_other_columns_are_kept(pets, frame):
    f = pets.parent/'t.csv'
    frame.assign(item=range(20), file=frame.image, kind=frame.label).drop(columns=['image','label']).to_csv(f, index=False)
    rows = load(f, input='file', target='kind').sft.rows
    assert rows.source_item.tolist()==list(range(20)) and rows.age.sum()==90 and rows.item[3]=='pets/cat/3.png'
    assert list(rows.columns)==['item','image','label','row','age','source_item','split']

def test_wrong_arguments(pets):
    with pytest.raises(DataError, match="no option 'sise' for task 'image'. Did you mean 'size'"): load(pets, sise=3)
    with pytest.raises(DataError, match="bad='ignore'. Valid: 'raise'"): load(pets, bad='ignore')
    for v in (0, 1, 20, True, None):
        with pytest.raises(DataError, match='between 0 and 1'): load(pets, valid=v)
    with pytest.raises(TaskError, match="Did you mean 'image'"): load_data('imgae', pets)
    with pytest.raises(DataError, match='Cannot read labelled rows out of a int'): load(3)
    with pytest.raises(DataError, match='has the inputs image'): load(pets, input=dict(picture='x'))
    with pytest.raises(CheckpointError): load(pets, checkpoint='timm:no_such_model')

def test_repeated_column(pets):
    (pets.parent/'t.csv').write_text('image,label,label\na,b,c\n')
    with pytest.raises(DataError, match="column 'label' occurs twice"): load(pets.parent/'t.csv')

def test_rows_without_labels(pets, frame):
    assert read_rows(pets, IMAGE, labelled=False).item[0]=='cat/0.png'
    assert read_rows(str(pets/'cat/0.png'), IMAGE, labelled=False).image.tolist()==[str(pets/'cat/0.png')]
    two = read_rows([pets/'cat/0.png', Image.new('RGB', (3,3))], IMAGE, labelled=False)
    assert two.item.tolist()==[str(pets/'cat/0.png'), 'row 1'] and 'label' not in two
    frame[['image']].to_csv(pets.parent/'t.csv', index=False)
    assert read_rows(pets.parent/'t.csv', IMAGE, labelled=False).item[3]=='pets/cat/3.png'
    with pytest.raises(DataError, match="no column 'label'"): read_rows(pets.parent/'t.csv', IMAGE)
    assert read_rows(np.zeros((4,4,3), np.uint8), IMAGE, labelled=False).image[0].shape==(4,4,3)

def test_text_rows(tmp_path):
    assert read_rows(['good','bad'], words(), labelled=False).text.tolist()==['good','bad']
    assert read_rows('a single text', words(), labelled=False).text.tolist()==['a single text']
    for k in ('x','y'):
        (tmp_path/k).mkdir()
        for i in range(3): (tmp_path/k/f'{i}.txt').write_text(f'{k} {i}')
    rows = read_rows(tmp_path, words())
    assert rows.text.tolist()==['x 0','x 1','x 2','y 0','y 1','y 2'] and rows.label.tolist()==['x']*3+['y']*3

def test_targets_that_are_no_class(tmp_path):
    pairs = IMAGE.copy(name='pairs', inputs=(TextInput('source'),), target=TextTarget(), check_rows=lambda rows,spec: [])
    f = tmp_path/'t.jsonl'
    f.write_text('\n'.join(json.dumps(dict(source=f's {i}', target=f't {i}')) for i in range(20)))
    spec = prepare_rows(DataSpec(pairs, read_rows(f, pairs)), .2)
    assert spec.vocab==[] and data_summary(spec).to_dict('list')==dict(train=[16], valid=[4], all=[20])
    with pytest.raises(DataError, match='takes a table'): read_rows(tmp_path, pairs)
