"Two towers under one head: missing sides, freezing and cache by towers, CLIP-like networks, saved folders, each error"
import json, subprocess, sys

import numpy as np, pandas as pd, pytest, timm, torch, transformers
from torch import nn
from sft_nb.core.basics import CheckpointError, DataError, FolderError, GroupError, HeadError
from sft_nb.checkpoints.references import open_checkpoint
from sft_nb.data.task import get_task
from sft_nb.data.load import load_data
from sft_nb.models.towers import dual_towers
from sft_nb.models.fusion import FusionHead
from sft_nb.training.learner import discriminative_lrs, layer_table, sft_learner
from sft_nb.training.cache_store import cache_info
from sft_nb.training.cache import cache_border, frozen_cache
from sft_nb.evaluation.evaluate import evaluate
from sft_nb.evaluation.tables import load_evaluation
from sft_nb.diagnosis.audit import audit
from sft_nb.deployment.predictor import load_predictor, save_predictor
from sft_nb.tasks.small_nets import word_pieces
from sft_nb.cli import main
from sft_nb.tasks.toys import make_toy

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('pair')

@pytest.fixture(scope='module')
def toy(folder): return make_toy('image_text', folder)

@pytest.fixture(scope='module')
def clip(folder, toy): return dual_folder(folder/'clip', 'CLIP', pd.read_csv(toy['source']).text.dropna())

def dual_folder(path, kind, texts, **text):
    "A CLIP-like network of two layers a side, with a tokenizer and the settings of its pictures"
    tok = word_pieces(texts)
    tok.eos_token,tok.model_max_length = '[SEP]',16
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = dict(vocab_size=len(tok), max_position_embeddings=16, eos_token_id=3, bos_token_id=2, pad_token_id=0, **small, **text)
    more = dict(projection_dim=8) if kind=='CLIP' else {}
    config = getattr(transformers, f'{kind}Config')(text_config=text, vision_config=dict(image_size=32, patch_size=16, **small), **more)
    torch.manual_seed(0)
    getattr(transformers, f'{kind}Model')(config).save_pretrained(path)
    tok.save_pretrained(path)
    cfg = dict(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32), do_center_crop=True, image_mean=[.4]*3, image_std=[.3]*3, resample=3)
    (path/'preprocessor_config.json').write_text(json.dumps(cfg))
    return path

def data(toy, source=None, **kw):
    return load_data('image_text', toy['source'] if source is None else source, **{**toy['load'], 'checkpoint':toy['checkpoint'], **kw})

def quiet(learn):
    for cb in [o for o in learn.cbs if type(o).__name__=='ProgressCallback']: learn.remove_cb(cb)
    learn.logger = lambda *_: None
    return learn

def still(learn):
    for m in learn.model.modules():
        if isinstance(m, nn.modules.dropout._DropoutNd): m.p = 0.
    return quiet(learn)

def state(model): return {k:v.detach().clone() for k,v in model.state_dict().items()}
def apart(a, b): return max((a[k].double()-b[k].double()).abs().max().item() for k in a)
def table(toy): return pd.read_csv(toy['source'], dtype=object).where(lambda d: d.notna(), None)

def absolute(toy):
    t = table(toy)
    return t.assign(image=[None if pd.isna(o) else str(toy['source'].parent/o) for o in t.image])

def test_missing_sides_are_counted(toy, capsys):
    data(toy)
    assert '4 of 16 rows have no picture and 2 of 16 rows have no text; a learned placeholder vector is used' in capsys.readouterr().err
    t = absolute(toy)
    data(toy, t.dropna(), valid=.3)
    assert 'placeholder' not in capsys.readouterr().err
    data(toy, t.assign(text=None).dropna(subset='image'))
    assert '12 of 12 rows have no text' in capsys.readouterr().err

def test_a_missing_side_has_no_influence(toy):
    m = sft_learner(data(toy)).model.eval()
    nn.init.normal_(m.head.missing['image']); nn.init.normal_(m.head.missing['text'])
    x,t = torch.randn(3,3,64,64),{**m.example[1], 'has':torch.tensor([[True,True],[True,False],[False,True]])}
    t = {k:torch.cat([v, v[:1]])[:3] if k!='has' else v for k,v in t.items()}
    with torch.no_grad():
        want = m(x, t)
        noise,other = x.clone(),t['input_ids'].clone()
        noise[2],other[1] = 9.,7
        assert torch.equal(m(noise, {**t, 'input_ids':other}), want)
        noise[0] = 9.
        assert not torch.equal(m(noise, t)[0], want[0])
        m.head.missing['image'].add_(torch.randn(m.head.missing['image'].shape))
        now = m(x, t)
        assert torch.equal(now[:2], want[:2]) and not torch.equal(now[2], want[2])

def test_rows_without_a_side_are_judged(toy, tmp_path):
    dls = data(toy)
    ev = evaluate(sft_learner(dls), on='train')
    lost = ev.rows.image.isna()
    assert lost.any() and ev.rows.text.isna().any() and {type(v) for v in ev.rows.image} == {str, type(None)}
    cut = ev.slices(['brightness','length'], least=1)
    assert cut.set_index('slice').rows['brightness is missing'] == lost.sum()
    assert list(ev.baselines()) == ['majority', 'colors', 'words', 'untuned'] and not ev.compare().empty
    assert load_evaluation(ev.save(tmp_path/'rows.parquet')).rows.image.isna().tolist() == lost.tolist()
    assert audit(dls).duplicates.empty

def test_batch_norm_counts_real_pictures_alone(toy):
    def stats(has, x):
        m = sft_learner(data(toy), freeze=None).model.train()
        t = {**m.example[1], 'has':torch.tensor(has)}
        t = {k:v if k=='has' else v[[0]*len(has)] for k,v in t.items()}
        m(x, t)
        return {k:v for k,v in m.net.image.state_dict().items() if 'running' in k}
    torch.manual_seed(0)
    x = torch.randn(3,3,64,64)
    a,b = stats([[True,True]]*2, x[:2]),stats([[True,True],[True,True],[False,True]], x)
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)
    fresh = stats([[False,True]]*2, x[:2])
    assert all(torch.equal(v, torch.zeros_like(v) if k.endswith('mean') else torch.ones_like(v)) for k,v in fresh.items())

def test_stand_in_learns_where_a_side_is_missing(toy):
    t = absolute(toy)
    for rows,moves in ((t.dropna(), False), (t, True)):
        learn = quiet(sft_learner(data(toy, rows, valid=.3), seed=3))
        learn.fit(2, 1e-2)
        assert (learn.model.head.missing['image'].abs().sum().item()>0)==moves

def test_hidden_sides_in_training_alone():
    torch.manual_seed(0)
    head = FusionHead(dict(image=4, text=3), nn.Linear(7, 2), drop_side=.5)
    has = torch.ones(4000, 2, dtype=torch.bool)
    hidden = ~head._hide(has)
    assert abs(hidden.any(1).float().mean()-.5)<.05 and not hidden.all(1).any() and abs(hidden[:,0].float().mean()-.25)<.05
    one = torch.tensor([[True,False]]*100)
    assert torch.equal(head._hide(one), one) and torch.equal(head.eval()._hide(has), has)

BORDERS = [('image', (0,3)), ('text', (5,0)), ('image.layer3', (3,3)), ('text.layer.1', (5,2)), ('image.layer4,text.layer.1', (4,2)), ('head', (5,3))]

@pytest.mark.parametrize('group,cut', BORDERS, ids=[g for g,_ in BORDERS])
def test_cached_equals_live_by_towers(toy, home, one_thread, group, cut):
    def run(cached):
        learn = still(sft_learner(data(toy), seed=5))
        learn.freeze_to(group)
        assert learn.model.cut_at(cache_border(learn.model))==cut
        if cached:
            with frozen_cache(learn): learn.fit(2, 1e-3)
            assert len(cache_info())==2 and learn.cached_groups
        else: learn.fit(2, 1e-3)
        return state(learn.model),np.array(learn.recorder.values, dtype=float)
    (live,lv),(kept,cv) = run(False),run(True)
    assert apart(live, kept)<1e-5 and np.allclose(lv, cv, atol=1e-4, equal_nan=True)

def test_cached_frozen_towers_do_not_run(toy, home):
    learn = quiet(sft_learner(data(toy)))
    learn.freeze_to('image')
    runs = []
    learn.model.net.text.register_forward_pre_hook(lambda *_: runs.append(1))
    learn.model.net.text.embeddings.register_forward_pre_hook(lambda *_: runs.append(1))
    with frozen_cache(learn):
        learn.fit(1, 1e-3)
        n = len(runs)
        learn.fit(3, 1e-3)
    assert n and len(runs)==n

@pytest.mark.parametrize('group', ['image','text'])
def test_the_other_tower_stands_still(toy, group):
    learn = quiet(sft_learner(data(toy), freeze=group, wd=.1))
    was = state(learn.model)
    learn.fit(2, 1e-2)
    moved = {k for k,v in learn.model.state_dict().items() if not torch.equal(was[k], v)}
    assert moved and all(k.startswith((f'net.{group}.','head.')) for k in moved)

def test_freezing_by_name_rule_and_dict(toy):
    learn = sft_learner(data(toy), freeze=dict(rule='^net.text.'))
    on = [n for n,p in learn.model.named_parameters() if p.requires_grad]
    assert all(n.startswith(('net.text.','head.')) for n in on) and any(n.startswith('net.text.') for n in on)
    learn.freeze_to(['image.layer4','text'])
    assert set(learn.model.groups)-set(learn.model.above(['image.layer4','text']))=={'image.stem','image.layer1','image.layer2','image.layer3'}
    for group,words in (('layer4', "There is no group 'layer4'"), ('image.layer', 'matches 4 groups'), ('text,', "no group ''"), (['image',3.5], 'group must be an index or a name')):
        with pytest.raises(GroupError, match=words): learn.freeze_to(group)
    with pytest.raises(GroupError, match='freezes nothing'): learn.freeze_to('image,text')

def test_rates_fall_in_each_tower_by_itself(toy):
    m = sft_learner(data(toy)).model
    lrs = dict(zip(m.groups, discriminative_lrs(m, 1., .5)))
    assert [lrs[g] for g in ('head','image.layer4','image.layer3','image.stem','text.layer.1','text.embeddings')]==[1., .5, .25, .5**5, .5, .5**3]

def test_fine_tune_one_tower(toy, home):
    learn = quiet(sft_learner(data(toy)))
    was = state(learn.model)
    learn.fine_tune(2, base_lr=1e-2, unfreeze_to='text.layer.1')
    assert all(torch.equal(was[k], v) for k,v in learn.model.state_dict().items() if k.startswith('net.image.'))
    assert not torch.equal(was['net.text.encoder.layer.1.output.dense.weight'], learn.model.net.text.encoder.layer[1].output.dense.weight)
    with pytest.raises(GroupError, match='no group'): learn.fine_tune(1, unfreeze_to='text.layer.8')

def test_gradient_checkpointing_changes_nothing(toy, one_thread):
    from sft_nb.training.callbacks import checkpoint_activations
    def run(on):
        learn = still(sft_learner(data(toy), freeze=None, seed=2))
        if on: checkpoint_activations(learn)
        learn.fit(2, 1e-3)
        return {k:v for k,v in state(learn.model).items() if v.is_floating_point()}
    assert apart(run(False), run(True))<1e-5

def test_adapter_in_both_towers(toy, tmp_path):
    from sft_nb.training.adapters import add_adapter
    learn = quiet(sft_learner(data(toy), seed=1))
    add_adapter(learn, r=2)
    assert {n.split('.')[1] for n in learn.model.adapter.layers}=={'image','text'}
    learn.fit(1, 1e-2)
    save_predictor(learn, tmp_path/'out')
    ev = evaluate(learn)
    assert np.allclose(load_predictor(tmp_path/'out').predict(ev.rows[['image','text']]).probability, ev.rows.probability, atol=1e-5)

UNKNOWN = dict(test_mambaout=64, densenet121=64)

@pytest.mark.parametrize('arch', UNKNOWN)
def test_any_picture_network(toy, arch):
    "Where there is no inner cut the tower is one piece; both are cached at their ends"
    text = toy['checkpoint'].partition('+')[2]
    learn = sft_learner(data(toy, checkpoint=f'timm:{arch}+{text}', pretrained=False))
    m,x = learn.model.eval(),learn.dls.valid.one_batch()[:2]
    assert len(m.towers['image'].pieces)==1 and m.cut_at(len(m.groups)-1)==(1,3)
    with torch.no_grad(): assert all(torch.allclose(m.suffix(b, m.prefix(b, *x)), m(*x), atol=1e-5) for b in m.borders())

@pytest.mark.parametrize('head', [None, [8], 'module'])
def test_saved_folder_opens_everywhere(toy, tmp_path, head):
    learn = quiet(sft_learner(data(toy), head=None if head=='module' else head, freeze=None, dropout=0. if head else .1))
    if head=='module':
        width = learn.model.head.top.in_features
        learn = quiet(sft_learner(data(toy), head=nn.Sequential(nn.Linear(width, 2)), freeze=None))
    learn.fit(1, 1e-3)
    out,ev = save_predictor(learn, tmp_path/'out'),evaluate(learn)
    if head=='module':
        with pytest.raises(FolderError, match='a module of your own'): load_predictor(out)
    model = load_predictor(out, head=nn.Sequential(nn.Linear(width, 2)) if head=='module' else None)
    assert np.allclose(model.predict(ev.rows[['image','text']]).probability, ev.rows.probability, atol=1e-5)
    with torch.no_grad():
        x,t = learn.model.example
        assert torch.allclose(timm.create_model(f"local-dir:{out/'image'}", pretrained=True).eval()(x), learn.model.net.image.eval()(x), atol=1e-6)
        net = transformers.AutoModel.from_pretrained(out/'text', add_pooling_layer=False).eval()
        t = {k:v for k,v in t.items() if k!='has'}
        assert torch.allclose(net(**t).last_hidden_state, learn.model.net.text.eval()(**t).last_hidden_state, atol=1e-5)
    assert transformers.AutoTokenizer.from_pretrained(out/'text').tokenize('fine day')==['fine','day']

def test_damaged_folders_are_refused(toy, tmp_path):
    out = save_predictor(quiet(sft_learner(data(toy))), tmp_path/'out', metrics={})
    info = json.loads((out/'sft.json').read_text())
    assert info['checkpoint']['kind']=='pair' and {'image/model.safetensors','text/model.safetensors','head.safetensors'}<=set(info['files'])
    assert set(info['versions'])>={'timm','transformers'} and 'library_name: sft_nb' in (out/'README.md').read_text()
    file = out/'image'/'model.safetensors'
    data_ = file.read_bytes()
    file.write_bytes(data_[:-1]+bytes([data_[-1]^1]))
    with pytest.raises(FolderError, match='was changed after it was saved'): load_predictor(out)
    file.unlink()
    with pytest.raises(FolderError, match='is missing'): load_predictor(out)
    file.write_bytes(data_)
    (out/'text'/'added_tokens.json').write_text('{}')
    with pytest.raises(FolderError, match='was added after'): load_predictor(out)

def test_a_saved_pair_is_a_checkpoint(toy, tmp_path):
    learn = quiet(sft_learner(data(toy), freeze=None))
    learn.fit(1, 1e-3)
    out = save_predictor(learn, tmp_path/'out', metrics={})
    again = sft_learner(data(toy, checkpoint=str(out)))
    now = again.model.state_dict()
    assert again.spec.checkpoint.kind=='pair'
    assert all(torch.equal(v, now[k]) for k,v in learn.model.state_dict().items() if k.startswith('net.'))

def test_items_of_all_kinds(toy, tmp_path):
    learn = quiet(sft_learner(data(toy)))
    model = load_predictor(save_predictor(learn, tmp_path/'out', metrics={}))
    picture = str(toy['source'].parent/'wild0.png')
    both = model.predict([dict(image=picture, text='cold grim day')])
    assert np.allclose(model.predict(pd.DataFrame(dict(image=[picture], text=['cold grim day']))).probability, both.probability)
    alone = model.predict(picture)
    for items in ([picture], [dict(image=picture)], pd.DataFrame(dict(image=[picture])), pd.DataFrame(dict(image=[picture], text=[' ']))):
        assert np.allclose(model.predict(items).probability, alone.probability, atol=1e-6)
    assert len(model.predict_proba([dict(text='fine day')]).columns)==3
    assert learn.predict(dict(image=picture, text='cold grim day'))[0]==both.prediction[0]
    with pytest.raises(DataError, match='is missing'): model.predict('nowhere.png')
    with pytest.raises(DataError, match='empty image and text: one of them is needed'): model.predict([dict(text='a'), dict(text='')])
    with pytest.raises(DataError, match="has no column 'image'"): model.predict(pd.DataFrame(dict(picture=[picture], label=['a'])))

def test_bad_rows(toy):
    t = absolute(toy)
    t.loc[0,'image'] = str(toy['source'])
    t.loc[1,'text'] = 3
    t.loc[2,['image','text']] = None
    t.loc[3,'image'] = 'nowhere.png'
    with pytest.raises(DataError) as e: data(toy, t)
    for o in ('row 0: not a picture','row 1: is a int (3), not a text','row 2: empty image and text: one of them is needed','row 3: is missing'): assert o in str(e.value)
    assert len(data(toy, t, bad='skip').sft.rows)==12
    with pytest.raises(DataError, match="has no column 'text'"): data(toy, t.drop(columns='text'))
    with pytest.raises(DataError, match='takes a table'): data(toy, toy['source'].parent)

def test_options_and_heads(toy):
    for kw,words in ((dict(size=4), '4096 pixels, got 4'), (dict(resize='stretch'), "resize='stretch'"), (dict(max_length=3), 'max_length must be .*, got 3'),
                     (dict(pooling='sum'), "pooling='sum'")):
        with pytest.raises(DataError, match=words): data(toy, **kw)
    dls = data(toy)
    for kw,words in ((dict(head='flatten:8'), 'towers give vectors'), (dict(drop_side=1.), 'drop_side must be at least 0'), (dict(head='big'), 'head must describe an output layer')):
        with pytest.raises(HeadError, match=words): sft_learner(dls, **kw)

REFERENCES = [('pip:efficientnet-lite0', "does not fit task 'image_text'.*pip:efficientnet-lite0\\+pip:all-minilm-l6-v2"), ('pip:efficientnet-lite0+', 'The text half of the pair is empty'),
              ('+pip:all-minilm-l6-v2', 'The image half of the pair is empty'), ('timm:resnet10t+timm:resnet18', "text half of IMAGE\\+TEXT: timm:resnet18 .* does not fit task 'text'"),
              ('pip:all-minilm-l6-v2+pip:efficientnet-lite0', "image half of IMAGE\\+TEXT"),
              ('timm:resnte18+pip:all-minilm-l6-v2', "image half of IMAGE\\+TEXT: timm has no architecture 'resnte18'")]

@pytest.mark.parametrize('ref,words', REFERENCES, ids=[r for r,_ in REFERENCES])
def test_references(ref, words):
    with pytest.raises(CheckpointError, match=words): open_checkpoint(ref, 'image_text', pretrained=False)

def test_picture_half_of_transformers_is_refused(tmp_path, toy):
    transformers.ViTModel(transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)).save_pretrained(tmp_path/'vit')
    with pytest.raises(CheckpointError, match='is a model of transformers .vit.. Take one of timm'): open_checkpoint((str(tmp_path/'vit'), toy['checkpoint'].partition('+')[2]), 'image_text')

def test_other_checkpoint_must_read_the_same(toy, clip):
    with pytest.raises(CheckpointError, match='Load them for it'): sft_learner(data(toy), checkpoint=str(clip))

def test_clip(toy, clip, tmp_path, home, one_thread):
    dls = data(toy, checkpoint=str(clip), size=None)
    assert dls.sft.checkpoint.kind=='hf' and dls.sft.preprocess['size']==32 and dls.sft.preprocess['mean']==[.4]*3 and dls.sft.preprocess['max_length']==16
    learn = still(sft_learner(dls))
    m = learn.model
    assert [g for g in m.groups if g.startswith('image')]==['image.embeddings','image.layers.0','image.layers.1']
    assert 'net.text_projection.weight' in m.groups['text.layers.1'] and 'net.logit_scale' in m.groups['text.embeddings']
    net = transformers.CLIPModel.from_pretrained(clip).eval()
    x,t = learn.dls.valid.one_batch()[:2]
    with torch.no_grad():
        sides = m.eval().prefix(len(m.groups)-1, x, t)
        on = t['has'].all(1)
        assert torch.allclose(sides['image'][on], net.get_image_features(pixel_values=x[on].as_subclass(torch.Tensor)).pooler_output, atol=1e-5)
        assert torch.allclose(sides['text'][on], net.get_text_features(input_ids=t['input_ids'][on], attention_mask=t['attention_mask'][on]).pooler_output, atol=1e-5)
    learn.fit_head(2)
    assert len(cache_info())==2
    learn.freeze_to('text.layers.1')
    assert m.cut_at(cache_border(m))==(1,0)
    learn.fit(1, 1e-3)
    out,ev = save_predictor(learn, tmp_path/'out'),evaluate(learn)
    model = load_predictor(out)
    assert np.allclose(model.predict(ev.rows[['image','text']]).probability, ev.rows.probability, atol=1e-5)
    plain = transformers.CLIPModel.from_pretrained(out).state_dict()
    assert all(torch.equal(v, m.net.state_dict()[k]) for k,v in plain.items())
    assert (out/'preprocessor_config.json').is_file()
    with pytest.raises(DataError, match='size must be 32, the only size of .*, got 64'): data(toy, checkpoint=str(clip), size=64)

def test_siglip_reads_its_padding(toy, tmp_path, home):
    path = dual_folder(tmp_path/'siglip', 'Siglip', pd.read_csv(toy['source']).text.dropna())
    dls = data(toy, checkpoint=str(path), size=None)
    t = dls.train.one_batch()[1]
    assert dls.sft.preprocess['padded'] and t['input_ids'].shape[1]==16 and t['attention_mask'].all()
    learn = quiet(sft_learner(dls))
    learn.fit_head(1)
    ev = evaluate(learn)
    model = load_predictor(save_predictor(learn, tmp_path/'out', metrics={}))
    assert np.allclose([model.predict([dict(o)]).probability[0] for o in ev.rows[['image','text']].to_dict('records')], ev.rows.probability, atol=1e-5)

def test_networks_that_cannot_be_told_apart():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 4)
        def get_image_features(self, pixel_values): return self.body(pixel_values.flatten(1)[:,:4])
        def get_text_features(self, input_ids, attention_mask): return self.body(input_ids.float()[:,:4])
    with pytest.raises(CheckpointError, match="uses 'body' for pictures and for texts"):
        dual_towers(One(), torch.zeros(2,3,8,8), dict(input_ids=torch.ones(2,5, dtype=torch.long), attention_mask=torch.ones(2,5)))

def test_shown(toy):
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    learn = quiet(sft_learner(data(toy)))
    learn.dls.train.show_batch(max_n=4)
    learn.show_results(max_n=4)
    titles = [ax.get_title() for ax in plt.gcf().axes]
    assert len(titles)==4 and all('→' in o for o in titles)
    below = [o.get_text() for ax in plt.gcf().axes for o in ax.texts]
    assert any(o in ('no picture','no text') for o in below) and any('day' in o or 'evening' in o for o in below)
    evaluate(learn).show_worst(4)
    plt.close('all')

def test_command_line(toy, tmp_path, capsys, home):
    out = tmp_path/'out'
    words = ['finetune', 'image_text', str(toy['source']), '--out', str(out), '--checkpoint', toy['checkpoint']]
    assert main([*words, '--no-augment', '--option', 'size=64', '--valid', '.25', '--epochs', '1', '--freeze', 'text.layer.1'])==0
    metrics = json.loads((out/'metrics.json').read_text())
    assert metrics['n_train']==12 and (out/'report.html').read_text().count('<img')==3
    assert main(['predict', str(out), str(toy['source']), '--out', str(tmp_path/'said.csv')])==0
    assert len(pd.read_csv(tmp_path/'said.csv'))==16
    assert main(['predict', str(out), str(toy['source'].parent/'calm0.png')])==0
    assert main(['evaluate', str(out), str(toy['source']), '--out', str(tmp_path/'m.json')])==0
    assert json.loads((tmp_path/'m.json').read_text())['n']==16
    capsys.readouterr()
    assert main(['finetune', 'image_text', str(toy['source']), '--out', str(tmp_path/'no'), '--checkpoint', 'pip:all-minilm-l6-v2'])==2
    assert '(a picture model, a plus, a text model)' in capsys.readouterr().err and not (tmp_path/'no').exists()
