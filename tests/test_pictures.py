"Every kind of picture by its values, the transform against timm's, the loaders"
import io, os, subprocess, sys, warnings
import numpy as np, pytest, timm, torch
from PIL import features, Image
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

def test_gray_with_alpha():
    im = Image.new('LA', (2,1), (100,255))
    im.putpixel((1,0), (0,0))
    assert through(im)[0,:,0].tolist()==[100,255]

@pytest.mark.parametrize('transparency', [1, bytes([255,0])])
def test_palette_with_transparency(transparency):
    im = Image.new('P', (2,1))
    im.putpalette([10,20,30,40,50,60]); im.putpixel((1,0), 1)
    assert through(im, transparency=transparency).tolist()==[[[10,20,30],[255,255,255]]]

@pytest.mark.parametrize('mode,color', [('RGB',(1,2,3)), ('L',7)])
def test_one_color_is_transparent(mode, color):
    im = Image.new(mode, (2,1), color)
    im.putpixel((1,0), (9,9,9) if mode=='RGB' else 9)
    assert through(im, transparency=color).tolist()==[[[255]*3,[9]*3]]

@pytest.mark.parametrize('turn', range(1,9))
def test_exif_rotation(turn):
    right = np.array([[[250,0,0],[0,250,0],[0,0,250]],[[250]*3,[90]*3,[0]*3]], np.uint8)
    stored = {1:right, 2:right[:,::-1], 3:right[::-1,::-1], 4:right[::-1], 5:right.transpose(1,0,2), 6:np.rot90(right),
              7:right[::-1,::-1].transpose(1,0,2), 8:np.rot90(right,-1)}[turn]
    exif = Image.Exif(); exif[0x112] = turn
    assert (through(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)==right).all()

def test_broken_exif_is_no_obstacle():
    assert through(Image.new('RGB', (2,2), 'red'), 'JPEG', exif=b'Exif\0\0MM\0*\xff\xff').shape==(2,2,3)

def test_gray_and_one_bit():
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

def gray(values, dtype=np.uint16): return np.array([values], dtype)
def grays(o, bits=None): return np.asarray(read_picture(o, bits))[0,:,0].tolist()
def stored(im, kind='PNG', **kw):
    f = io.BytesIO()
    im.save(f, kind, **kw)
    return f.getvalue()

@pytest.mark.parametrize('form', [lambda a: a, Image.fromarray, lambda a: stored(Image.fromarray(a)), lambda a: stored(Image.fromarray(a), 'TIFF'),
                                  lambda a: a.astype(np.int32), torch.tensor, lambda a: dict(bytes=stored(Image.fromarray(a)), path=None)],
                         ids=['array','PIL','PNG','TIFF','int32','tensor','cell'])
def test_twelve_bits_in_sixteen(form):
    assert grays(form(gray([0,2048,4095])))==[0,128,255] and grays(form(gray([0,4096,65535])))==[0,16,255]
    assert grays(form(gray([0,300,4000])), 16)==[0,1,16] and grays(form(gray([0,300,4000])), 12)==[0,19,249] and grays(form(gray([0,300,60000])), 12)==[0,19,255]

def test_the_same_scene_is_scaled_the_same_way(tmp_path, capsys):
    "A camera of 12 bits with a dark picture; one of 16 bits with dark pictures; the model keeps which it was"
    rng = np.random.default_rng(0)
    def scene(name, tops):
        for i,top in enumerate(tops):
            for k in 'ab':
                (tmp_path/name/k).mkdir(parents=True, exist_ok=True)
                a = rng.integers(0, top, (40,40)).astype(np.uint16)
                a[0,0] = top
                Image.fromarray(a).save(tmp_path/name/k/f'{i}.png')
        dls = load(tmp_path/name)
        return dls,capsys.readouterr().err
    (twelve,said),(sixteen,also) = scene('twelve', [4000,300,200,4000,3000]),scene('sixteen', [65000,300,200,4000,3000])
    assert twelve.sft.preprocess['bits']==12 and '10 pictures of 16 bits hold values up to 4,000: read as 12 bits, white is 4,095.' in said
    assert sixteen.sft.preprocess['bits']==16 and '8 of 10 pictures of 16 bits hold no value above 4,095, others up to 65,000: all are read as 16 bits' in also
    square = {o:next(iter(picture_item_loader(d.sft, d.sft.rows[d.sft.rows.item.str.endswith('1.png')][:1], 1)))[0] for o,d in dict(twelve=twelve, sixteen=sixteen).items()}
    norm = [np.array(twelve.sft.preprocess[k]) for k in ('mean','std')]
    top = {k:float((v[0].permute(1,2,0).cpu().numpy()*norm[1]+norm[0]).max())*255 for k,v in square.items()}
    assert 10<top['twelve']<20 and top['sixteen']<2
    found = check_pictures([tmp_path/'sixteen'/'a'/'0.png'], twelve.sft)
    assert found==[] and '1 of 1 pictures of 16 bits hold values up to 65,000, above 4,095, the white of the 12 bits of training: they are clipped there.' in capsys.readouterr().err

def test_an_older_transform_takes_sixteen_bits():
    assert PictureTransform(8).bits==16
    with pytest.raises(DataError, match='bits must be 8, 12 or 16, got 10'): PictureTransform(8, bits=10)

def test_sixteen_bits_a_color_of_which_twelve_are_used():
    import struct, zlib
    def png(a):
        def chunk(k, d): return struct.pack('>I', len(d))+k+d+struct.pack('>I', zlib.crc32(k+d))
        raw = b''.join(b'\0'+row.astype('>u2').tobytes() for row in a)
        return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', a.shape[1], a.shape[0], 16, 2, 0, 0, 0))+chunk(b'IDAT', zlib.compress(raw))+chunk(b'IEND', b'')
    a = np.zeros((4,4,3), np.uint16)
    a[1] = 4000
    with pytest.raises(PictureError, match='of 16 bits per color, of which only the lower 12 are used'): read_picture(png(a))
    assert np.asarray(read_picture(png(a*16))).max()==250 and np.asarray(read_picture(png(a*0))).max()==0

@pytest.mark.parametrize('data,words', [(b'version https://git-lfs.github.com/spec/v1\noid sha256:00\n', 'pointer of a Git LFS file, whose content was not fetched (git lfs pull)'),
    (b'%PDF-1.7\n', 'a PDF'), (b'<!DOCTYPE html><html>', 'a page of HTML'), (b'\xef\xbb\xbf<svg xmlns="http://www.w3.org/2000/svg"/>', 'an SVG drawing'), (b'PK\3\4rest', 'a zip archive'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'PostScript'), (b'\0\0\0\x18ftypcrx \0\0\0\1crx isom', 'a camera raw file'), (b'FUJIFILMCCD-RAW ', 'a camera raw file'),
    (b'\0\0\0\x18ftypmp42\0\0\0\0mp42isom', 'a video'), (b'\xff\x0a\xfa\x7f', 'a JPEG XL picture'), (b'RIFF\x24\0\0\0WAVEfmt ', None)])
def test_what_is_no_picture_is_said_by_what_it_is(tmp_path, data, words):
    (tmp_path/'a.jpg').write_bytes(data)
    for o in (tmp_path/'a.jpg', data, dict(bytes=data, path='a.jpg')):
        ((_,problem),) = check_pictures([o])
        assert problem.startswith('not a picture, but ') and words in problem if words else problem=='truncated'

def test_the_preview_of_a_camera_raw_file_is_not_the_picture(tmp_path):
    small = stored(Image.new('RGB', (16,12), 'red'), 'TIFF', tiffinfo={254:1})
    (tmp_path/'a.nef').write_bytes(stored(Image.new('RGB', (16,12), 'red'), 'TIFF'))
    dng = stored(Image.new('RGB', (16,12), 'red'), 'TIFF', tiffinfo={50706:b'\1\4\0\0'})
    for o in (small, tmp_path/'a.nef', dng): assert check_pictures([o])==[(0, 'not a picture, but a camera raw file, of which only the preview could be read: develop it to JPEG or TIFF')]
    assert not check_pictures([stored(Image.new('RGB', (16,12), 'red'), 'TIFF', save_all=True, append_images=[Image.new('RGB', (4,4))])])

def test_too_many_pixels_say_what_to_do(monkeypatch):
    data = stored(Image.new('L', (30,30)))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    assert check_pictures([data])==[(0, 'too large (image size (900 pixels) exceeds limit of 200 pixels): make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it')]

HEIC = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\0\x08mdat'+bytes(64)

def test_a_photo_of_a_telephone_names_its_extra(tmp_path, monkeypatch):
    from sft_nb.data import images
    for f in ('a.HEIC','b.jpg'): (tmp_path/f).write_bytes(HEIC)
    monkeypatch.setattr(images, '_heif', lambda: False)
    for o in (tmp_path/'a.HEIC', tmp_path/'b.jpg', HEIC): assert check_pictures([o])==[(0, "a HEIC photo, which is read by pillow-heif: pip install 'sft_nb[heif]', or convert it to JPEG")]
    monkeypatch.setattr(images.features, 'check', lambda o: False)
    assert check_pictures([HEIC.replace(b'heic', b'avif')])==[(0, 'an AVIF picture, which Pillow reads from 11.3: pip install -U pillow, or convert it to JPEG')]

def test_heic_is_read_where_the_extra_is_installed(tmp_path):
    heif = pytest.importorskip('pillow_heif')
    rng = np.random.default_rng(0)
    a = np.kron(rng.integers(0, 255, (4,4,3)), np.ones((16,16,1))).astype(np.uint8)
    heif.from_pillow(Image.fromarray(a)).save(tmp_path/'a.jpg', quality=95, format='HEIF')
    assert (tmp_path/'a.jpg').read_bytes()[4:8]==b'ftyp'
    for o in (tmp_path/'a.jpg', (tmp_path/'a.jpg').read_bytes()): assert np.abs(np.asarray(read_picture(o)).astype(int)-a).mean()<12
    ((_,problem),) = check_pictures([HEIC])
    assert problem.startswith('a HEIC photo that is damaged')

@pytest.mark.skipif(not features.check('avif'), reason='a Pillow without AVIF')
def test_avif_is_read_by_pillow():
    a = np.full((16,16,3), (200,40,40), np.uint8)
    assert np.abs(np.asarray(read_picture(stored(Image.fromarray(a), 'AVIF'))).astype(int)-a).max()<12
    assert check_pictures([stored(Image.fromarray(a), 'AVIF')[:120]])[0][1].startswith('an AVIF picture that is damaged')

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
