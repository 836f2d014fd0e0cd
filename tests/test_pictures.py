"Every kind of picture by its values, the transform against timm's, the loaders"
import io, os, subprocess, sys, warnings
import numpy as np, pytest, timm, torch
from PIL import Image
from fastai.vision.all import (CategoryBlock, DataBlock, ImageBlock, ImageDataLoaders, RandomResizedCrop, RandTransform, Resize, TensorCategory,
                               TensorMultiCategory)
from sft_nb.core.basics import DataError
from sft_nb.data.task import get_task
from sft_nb.data.load import load_data
from sft_nb.data.images import check_pictures, picture_item_loader, PictureError, PictureTransform, read_picture, set_augment, spec_from_dls

NET = dict(checkpoint='timm:test_resnet', pretrained=False)

def through(im, kind='PNG', **kw):
    f = io.BytesIO()
    im.save(f, kind, **kw)
    return np.asarray(read_picture(f.getvalue()))

def test_transparent_on_white():
    im = Image.new('RGBA', (3,1), (255,0,0,255))
    im.putpixel((1,0), (0,0,0,0)); im.putpixel((2,0), (0,0,0,128))
    assert through(im).tolist()==[[[255,0,0],[255,255,255],[127,127,127]]]

def test_grey_with_alpha():
    im = Image.new('LA', (2,1), (100,255))
    im.putpixel((1,0), (0,0))
    assert through(im)[0,:,0].tolist()==[100,255]

@pytest.mark.parametrize('transparency', [1, bytes([255,0])])
def test_palette_with_transparency(transparency):
    im = Image.new('P', (2,1))
    im.putpalette([10,20,30,40,50,60]); im.putpixel((1,0), 1)
    assert through(im, transparency=transparency).tolist()==[[[10,20,30],[255,255,255]]]

@pytest.mark.parametrize('mode,colour', [('RGB',(1,2,3)), ('L',7)])
def test_one_colour_is_transparent(mode, colour):
    im = Image.new(mode, (2,1), colour)
    im.putpixel((1,0), (9,9,9) if mode=='RGB' else 9)
    assert through(im, transparency=colour).tolist()==[[[255]*3,[9]*3]]

@pytest.mark.parametrize('turn', range(1,9))
def test_exif_rotation(turn):
    right = np.array([[[250,0,0],[0,250,0],[0,0,250]],[[250]*3,[90]*3,[0]*3]], np.uint8)
    stored = {1:right, 2:right[:,::-1], 3:right[::-1,::-1], 4:right[::-1], 5:right.transpose(1,0,2), 6:np.rot90(right),
              7:right[::-1,::-1].transpose(1,0,2), 8:np.rot90(right,-1)}[turn]
    exif = Image.Exif(); exif[0x112] = turn
    assert (through(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)==right).all()

def test_broken_exif_is_no_obstacle():
    assert through(Image.new('RGB', (2,2), 'red'), 'JPEG', exif=b'Exif\0\0MM\0*\xff\xff').shape==(2,2,3)

def test_grey_and_one_bit():
    assert through(Image.new('L', (1,1), 77)).tolist()==[[[77]*3]]
    im = Image.new('1', (2,1), 1); im.putpixel((1,0), 0)
    assert through(im)[0].tolist()==[[255]*3,[0]*3]

def test_cmyk():
    assert through(Image.new('CMYK', (2,2), (0,255,255,0)), 'TIFF')[0,0].tolist()==[255,0,0]
    assert np.abs(through(Image.new('CMYK', (8,8), (0,255,255,0)), 'JPEG', quality=100)[0,0].astype(int)-[255,0,0]).max()<4

@pytest.mark.parametrize('kind', ['PNG','TIFF'])
def test_sixteen_bits_are_scaled(kind):
    deep = np.array([[0,257,25700,65535]], np.uint16)
    assert through(Image.fromarray(deep), kind)[0,:,0].tolist()==[0,1,100,255]

def test_sixteen_bits_in_an_integer_picture():
    im = Image.fromarray(np.array([[0,25700,65535]], np.int32))
    assert im.mode=='I' and np.asarray(read_picture(im))[0,:,0].tolist()==[0,100,255]
    assert through(im, 'TIFF')[0,:,0].tolist()==[0,100,255]
    assert np.asarray(read_picture(Image.fromarray(np.array([[-5,2**31-1]], np.int32))))[0,:,0].tolist()==[0,255]

@pytest.mark.parametrize('values', [[0,.5,1], [0,128,255], [0,500,1000]])
def test_floating_point(values):
    got = np.asarray(read_picture(Image.fromarray(np.array([values], np.float32))))[0,:,0]
    assert got.tolist()==[0,128,255]

def test_big_endian_tiff():
    im = Image.frombytes('I;16B', (2,1), b'\x64\x64\xff\xff')
    assert np.asarray(read_picture(im))[0,:,0].tolist()==[100,255]

@pytest.mark.parametrize('kind', ['GIF','WEBP','PNG','TIFF'])
def test_first_frame(kind):
    frames = [Image.new('RGB', (9,9), c) for c in ('red','blue')]
    got = through(frames[0], kind, save_all=True, append_images=frames[1:], **(dict(lossless=True) if kind=='WEBP' else {}))
    assert got[4,4].tolist()==[255,0,0]

def test_arrays_and_tensors():
    a = np.zeros((4,5,3), np.uint8); a[0,0] = 9
    for o in (a, torch.tensor(a), a.transpose(2,0,1), a/255): assert (np.asarray(read_picture(o))==a).all()
    assert np.asarray(read_picture(np.array([[True,False]])))[0,:,0].tolist()==[255,0]
    for o in (np.zeros(5), np.zeros((2,2,7)), 3):
        with pytest.raises(PictureError, match='not a picture'): read_picture(o)

def test_paths_say_what_is_wrong(tmp_path):
    with pytest.raises(PictureError, match=r'gone\.png: is missing'): read_picture(tmp_path/'gone.png')
    with pytest.raises(PictureError, match='is a folder'): read_picture(tmp_path)
    assert check_pictures([b'', b'\xff\xd8\xff\xe0', b'RIFF', Image.new('RGB', (2,2))])==[(0,'empty file'), (1,'truncated'), (2,'truncated')]

@pytest.mark.parametrize('size', [(300,200),(200,300),(31,33),(224,224),(500,40)])
@pytest.mark.parametrize('arch', ['resnet18','tf_efficientnet_lite0','vit_tiny_patch16_224'])
def test_the_same_pixels_as_timm(size, arch, noise):
    cfg = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(arch).to_dict())
    im = noise(size).convert('RGB')
    theirs = timm.data.create_transform(**{**cfg, 'mean':(0,0,0), 'std':(1,1,1)})(im)
    ours = PictureTransform(cfg['input_size'][1], interpolation=cfg['interpolation'], crop_pct=cfg['crop_pct'])(im)
    assert (np.asarray(ours).transpose(2,0,1)==(theirs*255).round().byte().numpy()).all()

@pytest.mark.parametrize('size', [(1,1),(1,4000),(4000,1),(3,2000)])
@pytest.mark.parametrize('resize', ['crop','pad','squish'])
def test_odd_shapes(size, resize): assert PictureTransform(32, resize=resize)(Image.new('L', size)).size==(32,32)

@pytest.fixture
def shapes(tmp_path):
    for k,c in (('a','red'),('b','blue')):
        (tmp_path/'d'/k).mkdir(parents=True)
        for i in range(20): Image.new('RGB', (40+i,50+i), c).save(tmp_path/'d'/k/f'{i:02}.png')
    return tmp_path/'d'

def load(shapes, **kw): return load_data('image', shapes, **{**NET, 'size':32, **kw})

def test_loaders(shapes):
    dls = load(shapes)
    xb,yb = dls.one_batch()
    assert xb.shape[1:]==(3,32,32) and isinstance(yb, TensorCategory) and dls.vocab==['a','b'] and dls.c==2
    assert dls.train.items==list(dls.sft.split('train').index) and len(dls.loaders)==2
    dls.show_batch(max_n=2)

def test_values_of_a_batch(shapes):
    dls = load(shapes)
    xb,yb = next(iter(dls.valid))
    for x,y in zip(xb, yb): assert x[:,5,5].tolist()==([1,-1,-1] if y==0 else [-1,-1,1])

def test_test_set_is_the_third(tmp_path, shapes):
    (tmp_path/'e').mkdir()
    shapes.rename(tmp_path/'e'/'train')
    for s in ('val','test'):
        for k in 'ab':
            (tmp_path/'e'/s/k).mkdir(parents=True)
            for i in range(2): Image.new('RGB', (9,9)).save(tmp_path/'e'/s/k/f'{i}.png')
    dls = load(tmp_path/'e')
    assert [len(dl.dataset) for dl in dls.loaders]==[40,4,4]
    assert [t.split_idx for t in dls[2].after_batch.fs if isinstance(t, RandTransform)]==[]

@pytest.mark.parametrize('n,bs', [(40,None),(3,None),(40,13),(40,1000)])
def test_small_data_still_train(tmp_path, n, bs):
    for i in range(n):
        (tmp_path/str(i%2)).mkdir(exist_ok=True)
        Image.new('RGB', (9,9)).save(tmp_path/str(i%2)/f'{i}.png')
    if n==3: Image.new('RGB', (9,9)).save(tmp_path/'1/9.png')
    dls = load(tmp_path, batch_size=bs)
    sizes = [len(y) for _,y in dls.train]
    assert sizes and min(sizes)>1

ORDER = '''
import sys, json
from sft_nb.data.load import load_data
dls = load_data('image', sys.argv[1], checkpoint='timm:test_resnet', pretrained=False, size=32, seed=7, num_workers=int(sys.argv[2]), augment=False)
print(json.dumps([y.tolist() for _ in range(2) for _,y in dls.train]))
'''

def test_the_seed_fixes_the_order(shapes):
    def batches(seed): return [y.tolist() for dl in [load(shapes, seed=seed).train] for _ in range(2) for _,y in dl]
    assert batches(7)==batches(7)!=batches(8)
    env = dict(os.environ, HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
    for workers in '02':
        out = subprocess.run([sys.executable, '-W', 'ignore', '-c', ORDER, str(shapes), workers], capture_output=True, text=True, env=env, check=True)
        assert out.stdout.strip()==str(batches(7))

def test_prediction_sees_what_validation_saw(shapes):
    dls = load(shapes)
    live = torch.cat([x for x,_ in dls.valid])
    again = torch.cat([b[0] for b in picture_item_loader(dls.sft, dls.sft.split('valid'), 3)])
    assert torch.equal(live, again)
    assert torch.equal(live[:1], dls.test_dl([dls.sft.split('valid').image.iloc[0]], num_workers=0).one_batch()[0])

@pytest.mark.parametrize('augment,names', [
    (True,{'Warp','Brightness'}), ('flip',{'Flip','Brightness'}), (dict(max_warp=0, max_rotate=0, max_zoom=1),{'Brightness'}), (False,set()), ([],set())])
def test_augmentation(shapes, augment, names):
    dls = load(shapes, augment=augment)
    assert {type(t).__name__ for t in dls.train.after_batch.fs if isinstance(t, RandTransform)}==names
    assert not any(getattr(t, 'split_idx', None)==0 for t in dls.valid.after_batch.fs)

def test_augmentation_off_and_on(shapes):
    dls = load(shapes, batch_size=32)
    ids = dls.train.items
    plain = torch.cat([b[0] for b in picture_item_loader(dls.sft, dls.sft.rows.loc[ids])])
    def batch():
        dls.train.shuffle = False
        return dls.train.one_batch()[0]
    assert not torch.equal(batch(), plain[:32])
    assert set_augment(dls, False) and torch.equal(batch(), plain[:32])
    assert not set_augment(dls, True) and not torch.equal(batch(), plain[:32])

def test_augmentation_of_items_off(shapes, noise):
    for f in shapes.glob('*/*.png'): noise((60,50)).save(f)
    dls = ImageDataLoaders.from_folder(shapes, valid_pct=.25, seed=1, item_tfms=RandomResizedCrop(32, min_scale=.1), bs=30, num_workers=0)
    dls.train.shuffle = False
    def batch(): return dls.train.one_batch()[0]
    assert not torch.equal(batch(), batch())
    set_augment(dls, False)
    assert torch.equal(batch(), batch()) and batch().shape[2:]==(32,32)
    set_augment(dls, True)
    assert not torch.equal(batch(), batch())

def test_augmentation_that_is_unknown(shapes):
    with pytest.raises(DataError, match="augment='flop'"): load(shapes, augment='flop')
    with pytest.raises(DataError, match="max_spin"): load(shapes, augment=dict(max_spin=3))
    for k,v in (('size',3),('size','big'),('resize','cut'),('batch_size',0),('num_workers',-1)):
        with pytest.raises(DataError, match=k): load(shapes, **{k:v})

def test_several_labels(shapes):
    import pandas as pd
    files = sorted(shapes.glob('*/*.png'))
    frame = pd.DataFrame(dict(image=list(map(str, files)), label=['x;y','y','z;x','z']*10))
    dls = load(frame, label_delim=';')
    assert dls.sft.multi_label and dls.vocab==['x','y','z'] and dls.sft.rows.label[2]==['z','x']
    xb,yb = next(iter(dls.valid))
    assert isinstance(yb, TensorMultiCategory) and yb.dtype==torch.float32
    for i,y in zip(dls.valid.items, yb): assert y.tolist()==[float(k in dls.sft.rows.label[i]) for k in 'xyz']
    dls.show_batch(max_n=2)

def test_pictures_in_memory(shapes):
    import pandas as pd
    pics = [Image.open(f) for f in sorted(shapes.glob('*/*.png'))]
    frame = pd.DataFrame(dict(image=pd.Series(pics, dtype=object), label=['a']*20+['b']*20))
    live = next(iter(load(shapes).valid))
    assert torch.equal(next(iter(load(frame).valid))[0], live[0])
    frame['image'] = pd.Series([f.read_bytes() for f in sorted(shapes.glob('*/*.png'))], dtype=object)
    assert torch.equal(next(iter(load(frame).valid))[0], live[0])

def test_preprocess_is_json_and_complete(shapes):
    import json
    dls = load(shapes, size=48, resize='pad')
    p = json.loads(json.dumps(dls.sft.preprocess))
    assert p==dls.sft.preprocess and p['size']==48 and p['resize']=='pad' and set(p)>={'mean','std','interpolation','crop_pct'}

def test_loaders_of_fastai(shapes):
    dls = ImageDataLoaders.from_folder(shapes, valid_pct=.25, seed=1, item_tfms=Resize(32, method='squish'), bs=4, num_workers=0)
    spec = spec_from_dls(dls, get_task('image'), 'timm:test_resnet', False)
    assert spec.vocab==['a','b'] and spec.preprocess['size']==32 and spec.preprocess['resize']=='squish' and not spec.multi_label
    assert len(spec.split('train'))==30 and list(spec.split('valid').label)==[p.parent.name for p in dls.valid.items]
    live = torch.cat([x for x,_ in dls.valid])
    again = torch.cat([b[0] for b in picture_item_loader(spec, spec.split('valid'))])
    assert torch.equal(live, again)
    block = DataBlock((ImageBlock,CategoryBlock), get_items=lambda p: sorted(p.glob('*/*.png')), get_y=lambda p: p.parent.name, item_tfms=Resize(24))
    assert spec_from_dls(block.dataloaders(shapes, num_workers=0), get_task('image'), 'timm:test_resnet', False).preprocess['size']==24

def test_a_large_picture_warns_at_most():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert check_pictures([Image.new('1', (3000,3000))])==[]
