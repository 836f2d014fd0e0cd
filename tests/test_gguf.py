"GGUF: what a writer puts in comes out, damaged and hostile files are refused by name, random harm raises nothing else, and the packaged model as plain transformers opens it"
import json, random, struct, subprocess, sys
import numpy as np, pytest
from sft_nb.core.basics import CheckpointError
from sft_nb.checkpoints.gguf import llama_folder, llama_tensors, read_gguf

U8,I8,U16,I16,U32,I32,F32,BOOL,TEXT,LIST,U64,I64,F64 = range(13)
CODES = dict(zip(range(13), 'BbHhIif?--Qqd'))

def text(s): return struct.pack('<Q', len(s.encode()))+s.encode()

def value(kind, v):
    if kind==TEXT: return text(v)
    if kind==LIST: return struct.pack('<IQ', v[0], len(v[1]))+b''.join(value(v[0], o) for o in v[1])
    return struct.pack('<'+CODES[kind], v)

def q8(w):
    "Bytes of Q8_0, and the numbers they stand for, by the definition of the format"
    out,numbers = b'',[]
    for row in w.reshape(-1, 32):
        scale = np.float16(abs(row).max()/127)
        q = np.round(row/np.float32(scale or 1)).clip(-128, 127).astype('int8')
        out += scale.tobytes()+q.tobytes()
        numbers.append([float(scale)*int(o) for o in q])
    return out,np.array(numbers).reshape(w.shape)

def q4(w):
    "The same of Q4_1"
    out,numbers = b'',[]
    for row in w.reshape(-1, 32):
        scale,low = np.float16((row.max()-row.min())/15),np.float16(row.min())
        q = np.round((row-np.float32(low))/np.float32(scale or 1)).clip(0, 15).astype('uint8')
        out += scale.tobytes()+low.tobytes()+bytes(int(q[i])|int(q[16+i])<<4 for i in range(16))
        numbers.append([float(scale)*int(o)+float(low) for o in q])
    return out,np.array(numbers).reshape(w.shape)

KINDS = {0:lambda w: (w.astype('<f4').tobytes(), w), 1:lambda w: (w.astype('<f2').tobytes(), w.astype('f2')), 3:q4, 8:q8}

def packed(values=(), tensors=(), version=3, step=32, n_tensors=None, n_values=None, gap=0):
    "The bytes of a GGUF file; `values`: name -> (type, value), `tensors`: name -> (type, array)"
    values,tensors,data = dict(values),dict(tensors),b''
    head = b'GGUF'+struct.pack('<IQQ', version, len(tensors) if n_tensors is None else n_tensors, len(values) if n_values is None else n_values)
    for k,(kind,v) in values.items(): head += text(k)+struct.pack('<I', kind)+value(kind, v)
    for k,(kind,w) in tensors.items():
        head += text(k)+struct.pack(f'<I{w.ndim}QIQ', w.ndim, *w.shape[::-1], kind, len(data))
        data += KINDS[kind](w)[0]
        data += bytes(-len(data)%step+gap)
    return head+bytes(-len(head)%step)+data

@pytest.fixture
def file(tmp_path):
    def write(data):
        (tmp_path/'a.gguf').write_bytes(data)
        return tmp_path/'a.gguf'
    return write

VALUES = {'small':(U8, 200), 'below':(I8, -100), 'short':(U16, 60000), 'i16':(I16, -30000), 'u32':(U32, 2**32-1), 'i32':(I32, -2**31), 'half':(F32, .5),
          'yes':(BOOL, True), 'no':(BOOL, False), 'word':(TEXT, 'Größe\n中'), 'none':(TEXT, ''), 'u64':(U64, 2**64-1),
          'i64':(I64, -2**63), 'third':(F64, 1/3),
          'words':(LIST, (TEXT, ['a','','中'])), 'nums':(LIST, (I32, [1,-2,3])),
          'reals':(LIST, (F32, [.5,-2.])), 'flags':(LIST, (BOOL, [True,False])), 'empty':(LIST, (TEXT, [])), 'zero':(LIST, (U64, []))}

@pytest.mark.parametrize('version', [2, 3])
def test_values_come_back(file, version):
    read,tensors = read_gguf(file(packed(VALUES, version=version)))
    assert list(read)==list(VALUES) and tensors=={}
    for k,(kind,v) in VALUES.items():
        if kind!=LIST: assert read[k]==v and type(read[k]) is type(v)
        elif v[0]==TEXT: assert read[k]==v[1]
        else: assert read[k].dtype==np.dtype(CODES[v[0]]) and read[k].tolist()==v[1]

@pytest.mark.parametrize('step', [32, 64, 8])
def test_tensors_come_back(file, step):
    rng = np.random.default_rng(0)
    given = {f'{kind}.{len(shape)}':(kind, rng.normal(size=shape).astype('f4')) for kind in KINDS for shape in ((64,), (3,96), (2,3,32), (2,1,3,32))}
    given |= {'odd':(0, rng.normal(size=(3,5)).astype('f4')), 'flat':(3, np.ones((2,32), 'f4')), 'nil':(8, np.zeros(32, 'f4'))}
    _,read = read_gguf(file(packed({'general.alignment':(U32, step)} if step!=32 else {}, given, step=step)))
    assert list(read)==list(given) and {o.dtype.name for o in read.values()}=={'float32'}
    for k,(kind,w) in given.items():
        want = KINDS[kind](w)[1]
        assert read[k].shape==w.shape and abs(read[k]-want).max()<=1e-6*max(1, abs(want).max())
        assert abs(read[k]-w).max()<=(0, 1e-2, 0, .3, 0, 0, 0, 0, .05)[kind]

def test_halves_of_a_block_stay_apart(file):
    row = np.r_[np.arange(16), np.arange(16)[::-1]].astype('f4')
    assert read_gguf(file(packed(tensors=dict(w=(3, row)))))[1]['w'].tolist()==row.tolist()

ONE = dict(w=(0, np.ones((2,3), 'f4')))
def at_tensor(fmt, at, v):
    "The file of ONE with a number of its list of tensors replaced; behind the name come dimensions (0), 3 (4), 2 (12), type (20), offset (24)"
    data = packed(tensors=ONE)
    place = data.index(text('w'))+9+at
    return data[:place]+struct.pack(fmt, v)+data[place+struct.calcsize(fmt):]

DAMAGE = [
    (b'', 'ends after 0 bytes'), (b'GGUF', 'ends after 4 bytes'), (b'GGML'+bytes(40), "begins with b'GGML'"), (b'PK\3\4'+bytes(40), 'begins with'),
    (packed(version=1), 'must have version 2 or 3 of GGUF (little-endian), got 1'), (packed(version=3<<24), 'little-endian'), (packed(VALUES)[:300], 'in the middle of an entry'),
    (packed(n_values=2**64-1), 'ends after'), (packed(n_tensors=2**64-1), 'ends after'), (packed(n_tensors=2**40), 'ends after'),
    (packed(dict(a=(TEXT, 'abc'))).replace(struct.pack('<Q', 3)+b'abc', struct.pack('<Q', 2**64-1)+b'abc'), 'ends after'),
    (packed(dict(a=(TEXT, 'abc'))).replace(b'abc', b'\xff\xfe\xfd'), 'is not UTF-8'), (packed({'n'*257:(U8, 1)}), 'a name of 257 bytes'),
    (packed(dict(a=(LIST, (I32, [1,2])))).replace(struct.pack('<IQ', I32, 2), struct.pack('<IQ', I32, 2**62)), 'ends after'),
    (packed(dict(a=(LIST, (I32, [1,2])))).replace(struct.pack('<IQ', I32, 2), struct.pack('<IQ', LIST, 2)), 'a value of type 9'),
    (packed(dict(a=(LIST, (I32, [1,2])))).replace(struct.pack('<IQ', I32, 2), struct.pack('<IQ', 99, 2)), 'a value of type 99'),
    (packed(dict(ab=(U8, 1), cd=(U8, 2))).replace(b'cd', b'ab'), "'ab' twice"), (packed(tensors=dict(v=ONE['w'], w=ONE['w'])).replace(b'v', b'w'), "'w' twice"),
    (packed({'general.alignment':(U32, 0)}), 'below 2^20, got 0'), (packed({'general.alignment':(TEXT, 'x'*999)}), 'multiple of 8'),
    (packed({'general.alignment':(U32, 12)}), 'below 2^20, got 12'), (packed({'general.alignment':(U64, 2**63)}), 'below 2^20'),
    (packed({'general.alignment':(BOOL, True)}), 'below 2^20, got True'), (at_tensor('<I', 0, 0), '0 dimensions'), (at_tensor('<I', 0, 2**32-1), '1 to 4 are valid'),
    (at_tensor('<Q', 4, 0), 'the shape (2, 0)'), (at_tensor('<Q', 12, 2**63), 'the file has'), (at_tensor('<Q', 4, 2**64-1), 'the file has'),
    (at_tensor('<I', 20, 12), 'type 12. Valid: 0 (F32), 1 (F16), 3 (Q4_1), 8 (Q8_0)'), (at_tensor('<I', 20, 8), 'multiple of 32'),
    (at_tensor('<Q', 24, 32), 'offset 32, expected 0'), (at_tensor('<Q', 24, 2**64-32), 'expected 0'), (packed(tensors=ONE)[:-20], 'needs 24 bytes'),
    (packed(tensors=ONE)+b'x', '1 bytes after its end'), (packed(tensors=dict(v=ONE['w'], w=ONE['w']), gap=32), 'the offset 64, expected 32'),
    (packed(tensors=dict(w=(0, np.array([1,np.nan], 'f4')))), 'NaN, infinite'), (packed(tensors=dict(w=(0, np.array([np.inf], 'f4')))), 'NaN, infinite')]

@pytest.mark.parametrize('data,words', DAMAGE, ids=[o for _,o in DAMAGE])
def test_damage_is_named(file, data, words):
    with pytest.raises(CheckpointError) as e: read_gguf(file(data))
    assert words in str(e.value) and 'a.gguf' in str(e.value) and len(str(e.value))<700

def test_two_tensors_cannot_share_bytes(file):
    "A small file that would unpack to a large one"
    data = packed(tensors={f'w{i}':(0, np.ones(64, 'f4')) for i in range(3)})
    for i in (1,2): data = data.replace(text(f'w{i}')+struct.pack('<IQIQ', 1, 64, 0, 256*i), text(f'w{i}')+struct.pack('<IQIQ', 1, 64, 0, 0))
    with pytest.raises(CheckpointError, match="'w1' has the offset 0, expected 256"): read_gguf(file(data))

def test_numbers_too_large_for_half_are_refused(file):
    path = file(packed(tensors=dict(w=(0, np.array([7e4], 'f4')))))
    assert read_gguf(path)[1]['w'].tolist()==[7e4]
    with pytest.raises(CheckpointError, match='too large for float16'): read_gguf(path, 'float16')

def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path/'nowhere'):
        with pytest.raises(CheckpointError, match='was not read .* Pass a GGUF file'): read_gguf(path)

def test_memory_is_asked_for_first(file, monkeypatch):
    monkeypatch.setattr('sft_nb.core.untrusted.machine_memory', lambda: 10)
    with pytest.raises(CheckpointError, match='this machine has'): read_gguf(file(packed(tensors=ONE)))

def llama(**change):
    "A Llama of two layers: values and tensors of its file"
    from tokenizers import pre_tokenizers
    words = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', *sorted(pre_tokenizers.ByteLevel.alphabet()), 'he', 'll', 'hell', '12', '.?']
    rng,d,f = np.random.default_rng(0),32,64
    sizes = dict(block_count=2, context_length=64, embedding_length=d, feed_forward_length=f, vocab_size=len(words))
    values = {'general.architecture':(TEXT, 'llama'), **{f'llama.{k}':(U32, v) for k,v in sizes.items()}, 'llama.attention.head_count':(U32, 4), 'llama.attention.head_count_kv':(U32, 2),
        'llama.rope.dimension_count':(U32, 8), 'llama.attention.layer_norm_rms_epsilon':(F32, 1e-5), 'llama.rope.freq_base':(F32, 1e5), 'tokenizer.ggml.model':(TEXT, 'gpt2'),
        'tokenizer.ggml.pre':(TEXT, 'smollm'), 'tokenizer.ggml.tokens':(LIST, (TEXT, words)), 'tokenizer.ggml.token_type':(LIST, (I32, [3]*3+[1]*(len(words)-3))),
        'tokenizer.ggml.merges':(LIST, (TEXT, ['h e', 'l l', 'he ll', '1 2'])), 'tokenizer.ggml.bos_token_id':(U32, 1), 'tokenizer.ggml.eos_token_id':(U32, 2),
        'tokenizer.ggml.padding_token_id':(U32, 2), 'tokenizer.ggml.unknown_token_id':(U32, 0), 'tokenizer.chat_template':(TEXT, "{{ messages[0]['content'] }}<|im_end|>")}
    shapes = {'token_embd':(8, (len(words),d)), 'output_norm':(0, (d,))}
    for i in range(2):
        shapes |= {f'blk.{i}.{o}_norm':(0, (d,)) for o in ('attn','ffn')} | {f'blk.{i}.attn_{o}':(3, (n,d)) for o,n in dict(q=d, k=16, v=16, output=d).items()}
        shapes |= {f'blk.{i}.ffn_gate':(3, (f,d)), f'blk.{i}.ffn_up':(3, (f,d)), f'blk.{i}.ffn_down':(3, (d,f))}
    tensors = {f'{k}.weight':(kind, rng.normal(size=shape, scale=.3).astype('f4')+(len(shape)==1)) for k,(kind,shape) in shapes.items()}
    return {**values, **change},tensors

def test_a_llama_becomes_a_folder(file, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from sft_nb.checkpoints.references import open_checkpoint
    values,tensors = llama()
    ckpt = open_checkpoint(llama_folder(file(packed(values, tensors)), tmp_path/'out'))
    net,tok = ckpt.hf_model('LlamaForCausalLM').eval(),ckpt.tokenizer()
    read,dense = read_gguf(tmp_path/'a.gguf')
    for k,w in llama_tensors(read, dense).items(): assert torch.equal(net.state_dict()[k], torch.tensor(w).half().float())
    assert net.lm_head.weight is net.model.embed_tokens.weight and ckpt.params==sum(o.numel() for o in net.parameters())
    assert tok.convert_ids_to_tokens(tok('hell 12.?<|im_end|>').input_ids)==['hell','Ġ','1','2','.','?','<|im_end|>']
    plain = AutoModelForCausalLM.from_pretrained(ckpt.folder, dtype='float32')
    x = AutoTokenizer.from_pretrained(ckpt.folder).apply_chat_template([dict(role='user', content='hell 12')], return_tensors='pt', return_dict=True)['input_ids']
    assert x[0].tolist()==tok('hell 12<|im_end|>').input_ids
    with torch.no_grad(): assert torch.equal(net(x).logits, plain(x).logits)
    assert [getattr(plain.generation_config, f'{o}_token_id') for o in ('bos','eos','pad')]==[1,2,2]

def test_rotary_rows_are_put_in_order(file):
    "Attention by the definition of ggml, where a position turns neighboring numbers, is that of transformers on the reordered rows"
    values,tensors = llama()
    read,dense = read_gguf(file(packed(values, tensors)))
    ours,x = llama_tensors(read, dense),np.random.default_rng(1).normal(size=(5,32))
    angle = np.arange(5)[:,None]/1e5**(np.arange(0, 8, 2)/8)
    def turned(a, b): return a*np.cos(angle)-b*np.sin(angle),a*np.sin(angle)+b*np.cos(angle)
    q,k = (x@dense[f'blk.0.attn_{o}.weight'][:8].T for o in 'qk')
    a,b = (np.stack(turned(o[:,::2], o[:,1::2]), -1).reshape(5,8) for o in (q,k))
    q,k = (x@ours[f'model.layers.0.self_attn.{o}_proj.weight'][:8].T for o in 'qk')
    c,d = (np.concatenate(turned(o[:,:4], o[:,4:]), 1) for o in (q,k))
    assert np.allclose(a@b.T, c@d.T) and not np.allclose(q@k.T, a@b.T)

REFUSED = [
    ({'general.architecture':(TEXT, 'gemma')}, "got 'gemma'"),
    ({'llama.rope.scaling.factor':(F32, 8.)}, "'llama.rope.scaling.factor', which is not converted"),
    ({'llama.block_count':(U32, 2**32-1)}, '2^31, got 4294967295'), ({'llama.block_count':(U32, 2**31-1)}, "no tensor 'blk.2.attn_norm.weight'"),
    ({'llama.vocab_size':(BOOL, True)}, 'got True'), ({'llama.embedding_length':(U32, 64)}, 'do not fit the width 64'),
    ({'llama.attention.layer_norm_rms_epsilon':(F32, float('nan'))}, 'got nan'), ({'llama.rope.freq_base':(F32, float('inf'))}, 'got inf'),
    ({'tokenizer.ggml.tokens':(U8, 1)}, 'expected a list of tokens'), ({'tokenizer.ggml.tokens':(LIST, (I32, [1]))}, 'expected a list of tokens'),
    ({'tokenizer.ggml.tokens':(LIST, (TEXT, ['a','a']))}, 'expected different'), ({'tokenizer.ggml.token_type':(LIST, (I32, [1]))}, 'for each token'),
    ({'tokenizer.ggml.token_type':(LIST, (TEXT, ['1']))}, 'a number for each token'), ({'tokenizer.ggml.merges':(LIST, (TEXT, ['h']))}, "holds 'h'"),
    ({'tokenizer.ggml.merges':(LIST, (TEXT, ['h zz']))}, "holds 'h zz'"), ({'tokenizer.ggml.merges':(LIST, (TEXT, []))}, 'expected a list of merges'),
    ({'tokenizer.ggml.pre':(TEXT, 'llama-bpe')}, "Only 'smollm'"), ({'tokenizer.ggml.model':(LIST, (I32, [1,2]))}, "Only 'gpt2'"),
    ({'tokenizer.ggml.eos_token_id':(I32, -1)}, 'eos_token_id is -1'), ({'tokenizer.ggml.bos_token_id':(U32, 10**6)}, 'bos_token_id is 1000000'),
    ({'tokenizer.chat_template':(TEXT, '')}, 'expected a text'), ({'tokenizer.ggml.add_bos_token':(BOOL, True)}, 'Only False is converted'),
    ({'llama.vocab_size':(U32, 9)}, "'token_embd.weight' has the shape (264, 32); the settings of the file give (9, 32)")]

@pytest.mark.parametrize('change,words', REFUSED, ids=[o for _,o in REFUSED])
def test_a_llama_that_does_not_fit_is_refused(file, tmp_path, change, words):
    with pytest.raises(CheckpointError) as e: llama_folder(file(packed(*llama(**change))), tmp_path/'no')
    assert words in str(e.value) and not (tmp_path/'no').exists()

def harmed(data, rng):
    "A file cut, or with bytes changed, mostly in its head"
    data = bytearray(data)
    if rng.random()<.2: return bytes(data[:rng.randrange(len(data))])
    for _ in range(rng.choice((1,1,2,8))):
        at = rng.randrange(len(data) if rng.random()<.3 else 1500)
        if rng.random()<.5: data[at] = rng.randrange(256)
        else: data[at:at+8] = struct.pack('<Q', rng.choice((0, 1, 2**31, 2**32-1, 2**62, 2**63, 2**64-1, len(data))))
    return bytes(data)

def test_random_harm_raises_nothing_else(file, tmp_path):
    values,tensors = llama()
    whole = packed(values, tensors)
    rng,refused = random.Random(0),0
    for _ in range(300):
        try:
            read,dense = read_gguf(file(harmed(whole, rng)), 'float16')
            llama_tensors(read, dense)
        except CheckpointError: refused += 1
    assert refused>100
    for i in range(40):
        try: llama_folder(file(harmed(whole, rng)), tmp_path/f'out{i}')
        except CheckpointError: pass
    for _ in range(200):
        with pytest.raises(CheckpointError): read_gguf(file(b'GGUF\3\0\0\0'+rng.randbytes(rng.randrange(200))))

FRESH = '''
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder,prompt,n = sys.argv[1],sys.argv[2],int(sys.argv[3])
tok,net = AutoTokenizer.from_pretrained(folder),AutoModelForCausalLM.from_pretrained(folder, dtype='float32')
x = tok.apply_chat_template([dict(role='user', content=prompt)], add_generation_prompt=True, return_tensors='pt', return_dict=True)
y = net.generate(**x, max_new_tokens=n, do_sample=False)[0].tolist()
print(json.dumps(dict(ids=x['input_ids'][0].tolist(), logits=net(**x).logits[0,-1].tolist(), written=y[x['input_ids'].shape[1]:], pad=net.generation_config.pad_token_id)))
'''

def in_a_fresh_process(folder, prompt, n):
    "What plain transformers makes of a folder"
    r = subprocess.run([sys.executable, '-c', FRESH, str(folder), prompt, str(n)], capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    return json.loads(r.stdout.splitlines()[-1])

@pytest.mark.slow
def test_the_packaged_model_answers_and_stops(one_thread):
    import torch
    from sft_nb.checkpoints.references import open_checkpoint
    ckpt = open_checkpoint('pip:smollm2-135m-instruct', task='chat')
    assert (ckpt.kind, ckpt.arch, ckpt.params, ckpt.license, ckpt.preprocess['max_length'])==('hf', 'llama', 134_515_008, 'Apache-2.0', 8192) and 'chat' in ckpt.tasks
    tok,net = ckpt.tokenizer(),ckpt.hf_model('AutoModelForCausalLM').eval()
    assert tok.convert_ids_to_tokens(tok('\n\n1. in 2024').input_ids)==['ĊĊ','1','.','Ġin','Ġ','2','0','2','4'] and len(tok)==49_152
    assert 'quantized model' in (ckpt.folder/'README.md').read_text() and sum(o.numel() for o in net.parameters())==ckpt.params
    fresh = in_a_fresh_process(ckpt.folder, 'What is the capital of France?', 40)
    assert tok.decode(fresh['written'])=='The capital of France is Paris.<|im_end|>' and fresh['pad']==2
    with torch.no_grad(): assert net(torch.tensor([fresh['ids']])).logits[0,-1].tolist()==fresh['logits']
