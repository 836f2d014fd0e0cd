"The deletion test of benchmarks/deletion.py: what matters most is removed, and as much at random"
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from torch import nn
from sft_nb.all import get_task, load_data, sft_learner
from sft_nb.tasks.toys import make_toy
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'benchmarks'))
from deletion import _candidates, _fill, _visible, _without, deletion_test

@pytest.fixture
def red():
    x = torch.zeros(3, 32, 32)
    x[0,8:16,8:16] = 1
    return x

def test_cells_of_a_picture(red):
    assert _visible(red, 16).tolist()==[16*i+j for i in range(4,8) for j in range(4,8)]
    assert _fill(red, _visible(red, 16), 16).sum().item()==0
    assert _fill(red, [4*16+4], 16).sum().item()==60

def test_what_is_removed(red):
    ex = SimpleNamespace(tokenizer=SimpleNamespace(all_special_ids=[0,1,2,3], unk_token_id=1, cls_token_id=2, sep_token_id=3, pad_token_id=0))
    batch = [dict(input_ids=torch.tensor([[2,7,1,3,0]]), attention_mask=torch.tensor([[1,1,1,1,0]]), pixel_values=red[None])]
    parts,worth = _candidates(ex, batch, (0,'input_ids'), 0, torch.tensor([[9.,1,2,9,9]]), 16)
    assert (parts.tolist(), worth.tolist())==([1,2], [1,2])
    cells,worth = _candidates(ex, batch, (0,'pixel_values'), 0, red[:1], 16)
    assert (cells.tolist(), worth.tolist())==(_visible(red, 16).tolist(), [1]*16)
    gone = _without(batch, (0,'input_ids'), 0, [[1],[1,2]], 16)[0]
    assert (gone['attention_mask'].tolist(), gone['pixel_values'].shape, batch[0]['attention_mask'].tolist())==([[1,0,1,1,0],[1,0,0,1,0]], (2,3,32,32), [[1,1,1,1,0]])
    assert _without(batch, (0,'pixel_values'), 0, [cells], 16)[0]['pixel_values'].sum().item()==0

class RedCorner(nn.Module):
    "Looks at the red of the upper left corner and at nothing else"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        with torch.no_grad(): self.conv.weight[:] = torch.tensor([1.,0,0])[None,:,None,None]
    def forward(self, x):
        left = self.conv(x)[:,0,:8,:8].sum((1,2))
        return torch.stack([left, -left], -1)/x.shape[-1]**2*8

def test_pictures_with_a_red_corner(tmp_path):
    toy = make_toy('image', tmp_path)
    dls = load_data('image', toy['source'], checkpoint=toy['checkpoint'], pretrained=False, **toy['load'])
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64,64,3)).astype(np.uint8) for _ in range(6)]
    for o in noise: o[:8,:8,0] = 255
    planted = pd.DataFrame(dict(item=[f'noise {i}' for i in range(6)], image=pd.Series(noise, dtype=object)))
    removed = deletion_test(SimpleNamespace(model=RedCorner(), spec=dls.sft), planted, fractions=(.02,.05), draws=5)
    means = removed[['before','top','random']].mean()
    assert means.top<means.random<=means.before
    assert (removed.item.nunique(), len(removed))==(6, 12)

def test_texts(tmp_path):
    toy = make_toy('text', tmp_path)
    reader = sft_learner(load_data('text', toy['source'], checkpoint=toy['checkpoint'], **toy['load']), freeze=None, lr=3e-3)
    with reader.no_bar(), reader.no_logging(): reader.fit(15)
    texts = reader.dls.sft.rows
    hidden = deletion_test(reader, texts, draws=5)
    means = hidden[['before','top','random']].mean()
    assert means.top<means.random
    assert (hidden.removed<hidden.parts).all()
    given = deletion_test(reader, list(texts.text[:2]), draws=5)
    assert given.top.to_numpy()==pytest.approx(hidden.top[:len(given)].to_numpy(), abs=1e-5)
    assert (len(deletion_test(reader, texts[:0])), list(hidden))==(0, ['item','input','fraction','parts','removed','before','top','random'])
