"Each bad row, and the message that it prints"
import json, shutil
from pathlib import Path
import pandas as pd, pytest
from PIL import Image
from sft_nb.core.basics import DataError
from sft_nb.data.problems import BadRows
from sft_nb.data.load import load_data

NET = dict(checkpoint='timm:test_resnet', pretrained=False, augment=False)

def draw(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes('RGB', (16,16), bytes((i*(seed+3)*7+seed*11)%256 for i in range(768))).save(path)

@pytest.fixture
def pets(tmp_path):
    for kind in ('cat','dog'):
        for i in range(6): draw(tmp_path/'pets'/kind/f'{i}.png', i)
    return tmp_path/'pets'

def table(pets, lines, name='labels.csv'):
    (pets.parent/name).write_text('\n'.join(['image,label', *lines])+'\n')
    return pets.parent/name

def good(n=6): return [f'pets/{k}/{i}.png,{k}' for k in ('cat','dog') for i in range(n)]

def refused(source, **kw):
    with pytest.raises(BadRows) as e: load_data('image', source, **NET, **kw)
    return str(e.value), e.value.problems

def skipped(source, capsys=None, **kw):
    dls = load_data('image', source, bad='skip', **NET, **kw)
    assert len(dls.one_batch())==2
    return dls.sft

HINT = "Fix them, or pass bad='skip' to drop these rows."

@pytest.mark.parametrize('what,content,says', [
    ('text', b'no picture', 'not a picture'), ('empty', b'', 'empty file'),
    ('html', b'<html><body>404</body></html>', 'not a picture, but a page of HTML, as a server sends it in place of a file')])
def test_unreadable_picture(pets, what, content, says):
    (pets/'cat/3.png').write_bytes(content)
    text,problems = refused(pets)
    assert text==f"1 problem in {pets}:\n  {pets}/cat/3.png: {says}\n{HINT}"
    assert problems.item.tolist()==['cat/3.png']
    assert skipped(pets).skipped.to_dict('records')==[dict(item='cat/3.png', row=f'{pets}/cat/3.png', problem=says)]

@pytest.mark.parametrize('ending', ['png','jpg','gif','webp','bmp','tif'])
def test_truncated_picture(pets, ending, noise):
    f = pets/'cat'/f'long.{ending}'
    noise((200,200)).convert('RGB').save(f)
    f.write_bytes(f.read_bytes()[:len(f.read_bytes())//2])
    text,_ = refused(pets)
    assert f"  {f}: truncated\n" in text
    assert len(skipped(pets).rows)==12

def test_missing_file(pets):
    text,_ = refused(table(pets, [*good(), 'pets/cat/99.png,cat']))
    assert text==f"1 problem in labels.csv:\n  labels.csv line 14: is missing: {pets}/cat/99.png\n{HINT}"
    assert len(skipped(pets.parent/'labels.csv').rows)==12

@pytest.mark.parametrize('empty', ['', '   ', '\t'])
def test_empty_label(pets, empty):
    draw(pets/'cat/6.png')
    text,_ = refused(table(pets, [*good()[:3], f'pets/cat/6.png,{empty}', *good()[3:]]))
    assert text==f"1 problem in labels.csv:\n  labels.csv line 5: empty label\n{HINT}"
    assert skipped(pets.parent/'labels.csv').skipped.item.tolist()==['pets/cat/6.png']

def test_empty_label_in_a_frame(pets):
    frame = pd.DataFrame(dict(image=[str(pets/f'{k}/{i}.png') for k in ('cat','dog') for i in range(6)], label=['cat']*5+[None]+['dog']*5+[float('nan')]))
    text,_ = refused(frame)
    assert text==f"2 problems in the DataFrame:\n  row 5: empty label\n  row 11: empty label\n{HINT}"

def test_empty_path(pets):
    text,_ = refused(table(pets, [*good(), ' ,cat']))
    assert 'labels.csv line 14: empty image' in text

def test_class_with_one_item(pets):
    draw(pets/'eel/0.png')
    text,_ = refused(pets)
    assert text==f"1 problem in {pets}:\n  {pets}/eel/0.png: the only item of class 'eel': a class needs two\n{HINT}"
    assert skipped(pets).vocab==['cat','dog']

def test_class_with_one_item_left_after_skipping(pets):
    draw(pets/'eel/0.png')
    (pets/'eel/1.png').write_bytes(b'')
    text,_ = refused(pets)
    assert f"  {pets}/eel/0.png: the only item of class 'eel' that is left: a class needs two\n  {pets}/eel/1.png: empty file" in text
    assert sorted(skipped(pets).skipped.item)==['eel/0.png','eel/1.png']

def test_one_class_only(pets):
    shutil.rmtree(pets/'dog')
    for bad in ('raise','skip'):
        text,_ = refused(pets, bad=bad)
        assert text==f"1 problem in {pets}:\n  {pets}: one class only ('cat'): two are needed\nAdd data."

def test_one_class_left(pets):
    for i in range(6): (pets/f'dog/{i}.png').write_bytes(b'')
    text,problems = refused(pets, bad='skip')
    assert len(problems)==7 and f"  {pets}: one class only ('cat'): two are needed after leaving these out\nFix them, or add data." in text

@pytest.mark.parametrize('make', ['folder','csv','jsonl','frame','headless'])
def test_no_rows(tmp_path, make):
    (tmp_path/'pets').mkdir()
    (tmp_path/'a.csv').write_text('image,label\n')
    (tmp_path/'b.csv').write_text('')
    (tmp_path/'a.jsonl').write_text('')
    source = dict(folder=tmp_path/'pets', csv=tmp_path/'a.csv', jsonl=tmp_path/'a.jsonl', headless=tmp_path/'b.csv',
                  frame=pd.DataFrame(dict(image=[], label=[])))[make]
    for bad in ('raise','skip'):
        text,_ = refused(source, bad=bad)
        assert text.startswith('1 problem in ') and ': no rows\n' in text

def test_pictures_outside_of_class_folders(tmp_path):
    for i in range(3): draw(tmp_path/f'{i}.png')
    text,_ = refused(tmp_path)
    assert "Its 3 pictures are in no class folder. Expected" in text and 'CLASS/FILE' in text

@pytest.mark.parametrize('side', ['valid','test'])
def test_label_that_train_lacks(pets, side):
    lines = [f'{l},train' for l in good(4)]+[f'pets/cat/4.png,cat,{side}', f'pets/cat/5.png,cow,{side}', f'pets/dog/5.png,cow,{side}']
    csv = pets.parent/'split.csv'
    csv.write_text('image,label,split\n'+'\n'.join(lines)+'\n')
    text,_ = refused(csv)
    says = f"label 'cow' is in {side}, but train lacks it"
    assert text==f"2 problems in split.csv:\n  split.csv line 11: {says}\n  split.csv line 12: {says}\n{HINT}"
    assert (skipped(csv).rows.split==side).sum()==(1 if side=='test' else 1)

def test_label_of_a_valid_folder_that_train_lacks(pets):
    for k in ('cat','cow'):
        for i in range(2): draw(pets.parent/'held'/k/f'{i}.png')
    text,_ = refused(pets, valid=pets.parent/'held')
    assert f"  {pets.parent}/held/cow/0.png: label 'cow' is in valid, but train lacks it" in text
    assert skipped(pets, valid=pets.parent/'held').split('valid').item.tolist()==['held/cat/0.png','held/cat/1.png']

def test_duplicate_paths(pets):
    text,_ = refused(table(pets, [*good(), 'pets/../pets/cat/0.png,cat']))
    assert text==f"1 problem in labels.csv:\n  labels.csv line 14: the same file as labels.csv line 2\n{HINT}"
    assert len(skipped(pets.parent/'labels.csv').rows)==12

def test_duplicate_paths_whose_labels_differ(pets):
    text,_ = refused(table(pets, [*good(), 'pets/cat/0.png,dog']))
    assert "  labels.csv line 2: the same file as labels.csv line 14, which has label 'dog'" in text
    assert "  labels.csv line 14: the same file as labels.csv line 2, which has label 'cat'" in text
    assert len(skipped(pets.parent/'labels.csv').rows)==11

def test_the_same_file_in_train_and_valid(pets):
    text,_ = refused(pets, valid=pets)
    assert f"12 problems in {pets} and {pets}" in text and 'the same file as' in text

def test_all_at_once_and_every_one_is_kept(pets, capsys):
    for i in range(6,40): draw(pets/f'cat/{i}.png', i)
    for i in range(10,34): (pets/f'cat/{i}.png').write_bytes(b'')
    text,problems = refused(pets)
    assert len(problems)==24 and text.splitlines()[-2]=='  and 4 more'
    capsys.readouterr()
    assert len(skipped(pets).skipped)==24
    err = capsys.readouterr().err
    assert err.strip()==f"Skipped 24 of 46 rows of {pets} (24 empty file); dls.sft.skipped (in a shell sft_nb check) names them"

def test_every_kind_together(pets):
    (pets/'cat/0.png').write_bytes(b'')
    lines = [*good(), 'pets/cat/99.png,cat', 'pets/cat/1.png,cat', 'pets/dog/1.png', 'pets/x.png,']
    text,problems = refused(table(pets, lines))
    assert problems.row.tolist()==[f'labels.csv line {n}' for n in (2,14,15,16,17,17)]
    assert problems.problem.tolist()==['empty file', f'is missing: {pets}/cat/99.png', 'the same file as labels.csv line 3', 'has 1 cells where the header has 2',
                                       'empty label', f'is missing: {pets}/x.png']

def test_lines_are_those_of_an_editor(pets):
    (pets.parent/'n.csv').write_text('note,image,label\r\n"two\r\nlines",pets/cat/0.png,cat\r\n\r\nx,pets/gone.png,cat\r\n', newline='')
    text,_ = refused(pets.parent/'n.csv')
    assert 'n.csv line 5: is missing' in text

def test_json_lines(pets):
    f = pets.parent/'rows.jsonl'
    lines = [json.dumps(dict(zip(('image','label'), l.split(',')))) for l in good()]
    f.write_text('\n'.join([*lines, '{"image": "pets/cat/0.png"', '[1]', json.dumps(dict(image='pets/dog/0.png'))]))
    text,_ = refused(f)
    assert 'rows.jsonl line 13: is not JSON' in text and 'rows.jsonl line 14: is a list' in text and 'rows.jsonl line 15: empty label' in text
    assert len(skipped(f).rows)==12

def test_unknown_split(pets):
    f = pets.parent/'s.csv'
    f.write_text('image,label,split\n'+'\n'.join(f'{l},{"Validation" if i%6==5 else "train"}' for i,l in enumerate(good()))+'\n')
    assert (load_data('image', f, **NET).sft.rows.split=='valid').sum()==2
    f.write_text(f.read_text().replace('Validation', 'later', 1))
    assert "s.csv line 7: unknown split 'later'. Valid: train, valid, test" in refused(f)[0]

def test_decompression_bomb(pets, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    draw(pets/'cat/0.png')
    text,_ = refused(pets)
    assert f'{pets}/cat/0.png: too large (image size (256 pixels) exceeds limit of 200 pixels' in text

def test_nothing_surfaces_from_a_worker(pets):
    dls = load_data('image', pets, num_workers=2, batch_size=2, **NET)
    (pets/'cat/0.png').unlink(); (pets/'dog/1.png').write_bytes(b'xyz')
    with pytest.raises(DataError) as e: list(dls.train)+list(dls.valid)
    assert str(e.value) in (f'{pets}/cat/0.png: is missing', f'{pets}/dog/1.png: not a picture')

def test_quote_that_is_never_closed(pets):
    with pytest.raises(DataError, match='labels.csv line 14: a quote is opened here and never closed'):
        load_data('image', table(pets, [*good(), '"pets/cat/0.png,cat']), **NET)

@pytest.mark.parametrize('codec', ['cp1252','latin-1'])
def test_encoding(pets, codec):
    f = Path(pets.parent/'old.csv')
    f.write_bytes('image,label\npets/cat/0.png,\xe9t\xe9\x81\n'.encode(codec, 'ignore'))
    with pytest.raises(DataError) as e: load_data('image', f, **NET)
    assert f'Its encoding looks like {codec}' in str(e.value)
    assert 'offset 27, line 2' in str(e.value)

def test_wrong_column(pets):
    f = table(pets, good())
    with pytest.raises(DataError) as e: load_data('image', f, target='lable', **NET)
    assert str(e.value)=="labels.csv has no column 'lable' for the label. Columns: image, label. Did you mean 'label'? Name it by target=COLUMN."
    with pytest.raises(DataError, match="no column 'picture' for the image"): load_data('image', f, input='picture', **NET)

def test_source_that_is_not_there(pets):
    with pytest.raises(DataError, match=r"pest is missing\. Expected a folder .* Did you mean 'pets'\?"): load_data('image', pets.parent/'pest', **NET)
    with pytest.raises(DataError, match='not a table that can be read'): load_data('image', pets/'cat/0.png', **NET)
