"""A CUDA device that is not there: tensors with numbers that say they are on it, computed by the CPU

`Pretend` is a mode of torch: within it `cuda` is a place as it would be with a GPU. A tensor is moved there by `.to('cuda')`, what is computed from it stays there, and it meets a
tensor of the CPU only where CUDA allows that. Unlike fake tensors it has numbers, so that what reads them runs as well: generation, evaluation, losses of several rows, a whole fit.
What this cannot show: kernels, what C++ does within one call, streams, memory, speed; and other threads than the one that opened it."""
import torch
from fastai.torch_core import defaults
from torch import serialization
from torch.utils import checkpoint
from torch.overrides import TorchFunctionMode

CUDA = torch.device('cuda', 0)
T = torch.Tensor
# calls of several tensors where CUDA lets one of the CPU in
_FREE = {'__setitem__', 'copy_', '__set__', 'type_as', 'is_same_size', 'result_type', '_has_compatible_shallow_copy_type'}
_TO_HOST = {'numpy', '__array__'}

def tensors(o):
    "The tensors in arguments"
    if isinstance(o, T): yield o
    elif isinstance(o, dict):
        for v in o.values(): yield from tensors(v)
    elif isinstance(o, (list,tuple)):
        for v in o: yield from tensors(v)

def _storage(t):
    with torch._C.DisableTorchFunction(): return t.untyped_storage()

def there(t):
    "Whether a tensor says that it is on the device; said of its memory, so that views and parameters say the same"
    return t.layout==torch.strided and getattr(_storage(t), 'pretends', False)

def put(o):
    "Say of tensors that they are on the device"
    for t in tensors(o): _storage(t).pretends = True
    return o

def _restored(storage, location):
    "What `torch.load` asks for each piece of memory"
    if not location.startswith('cuda'): return None
    storage.pretends = True
    return storage

def _device(o):
    "A device out of an argument; None: it is something else"
    if isinstance(o, torch.device): return o
    if isinstance(o, str) and o.split(':')[0] in ('cuda','cpu','meta'): return torch.device(o)

class Stream:
    "In the place of the device's stream and of its events: all is done at once"
    def record_event(self): return self
    def synchronize(self): pass

class Within(TorchFunctionMode):
    "A mode once more, in a call that it answers"
    def __init__(self, mode):
        super().__init__()
        self.mode = mode
    def __torch_function__(self, f, types, args=(), kwargs=None): return self.mode.__torch_function__(f, types, args, kwargs)

class Pretend(TorchFunctionMode):
    "Within it, `cuda` is a device"
    def __init__(self):
        super().__init__()
        self.calls,self.unwaited,self.stream = 0,0,Stream() # calls that had a tensor of the device; copies to it that nobody waits for
    def __enter__(self):
        self.was,torch.cuda.current_stream = torch.cuda.current_stream,lambda device=None: self.stream
        self.engine,torch.autograd._engine_run_backward = torch.autograd._engine_run_backward,self._backward
        self.kinds,self.checks = serialization._package_registry[:],checkpoint._allowed_determinism_checks_to_fns['default']
        checkpoint._allowed_determinism_checks_to_fns['default'] = lambda t: (t.shape, t.dtype) # noted where a tensor does not say its place
        serialization.register_package(0, lambda storage: 'cuda:0' if getattr(storage, 'pretends', False) else None, _restored)
        self.used,defaults.use_cuda = defaults.use_cuda,None # fastai's: False keeps batches on the CPU, as a check there may have left it
        return super().__enter__()
    def __exit__(self, *args):
        torch.cuda.current_stream,torch.autograd._engine_run_backward,serialization._package_registry[:] = self.was,self.engine,self.kinds
        checkpoint._allowed_determinism_checks_to_fns['default'],defaults.use_cuda = self.checks,self.used
        return super().__exit__(*args)
    def _backward(self, *args, **kwargs):
        "What a backward pass computes again must be on the device too"
        with Within(self): return self.engine(*args, **kwargs)
    def __torch_function__(self, f, types, args=(), kwargs=None):
        kwargs,name = kwargs or {},getattr(f, '__name__', str(f))
        of_self = args[0] if args and isinstance(args[0], T) else None
        if name=='__get__' and of_self is not None and (known := self._property(f, of_self)) is not None: return known[0]
        if name in ('to','cuda','cpu') and of_self is not None: return self._moved(name, of_self, args[1:], kwargs)
        seen = list(tensors([args, kwargs]))
        here = [t for t in seen if there(t)]
        self.calls += bool(here)
        if here and name in _TO_HOST: raise TypeError(f"can't convert cuda:0 device type tensor to numpy ({name})")
        target = None if name=='_parse_to' else _device(kwargs.get('device'))
        if target is not None and target.type=='cuda': kwargs = {**kwargs, 'device':torch.device('cpu')}
        elif here: self._same_place(f, name, args, kwargs, seen)
        if kwargs.get('pin_memory'): kwargs = {**kwargs, 'pin_memory':False}
        out = f(*args, **kwargs)
        if target is not None: return put(self._owned(out, seen)) if target.type=='cuda' else out
        if name=='type_as': return put(out) if there(args[1]) else out
        return put(out) if here and name!='untyped_storage' else out

    def _property(self, f, t):
        "(value,) of what a tensor says of its place"
        if f==T.device.__get__: return (CUDA,) if there(t) else None
        if f==T.is_cuda.__get__: return (there(t),)
        if f==T.is_cpu.__get__: return (t.device.type=='cpu' and not there(t),)

    def _owned(self, out, seen):
        "A result with memory that no tensor of the CPU has"
        mine = {_storage(t).data_ptr() for t in seen}
        return out.clone() if isinstance(out, T) and out.numel() and _storage(out).data_ptr() in mine else out

    def _moved(self, name, t, args, kwargs):
        "`.to`, `.cuda`, `.cpu`"
        given = [*args, *kwargs.values()]
        self.unwaited += bool(kwargs.get('non_blocking'))
        other = next((o for o in given if isinstance(o, T)), None)
        to = CUDA if name=='cuda' else torch.device('cpu') if name=='cpu' else self._place(other) if other is not None else next(filter(None, map(_device, given)), None)
        if to is not None and to.type=='meta': return t.to(*args, **kwargs)
        dtype = next((o for o in given if isinstance(o, torch.dtype)), t.dtype if other is None else other.dtype)
        kept = {k:kwargs[k] for k in ('copy','memory_format') if kwargs.get(k) is not None}
        was,out = there(t),t.to(dtype, **kept)
        goes = was if to is None else to.type=='cuda'
        if goes!=was: out = self._owned(out, [t])
        return put(out) if goes else out

    def _place(self, t): return CUDA if there(t) else t.device

    def _same_place(self, f, name, args, kwargs, seen):
        "Raise where CUDA would: a tensor of the CPU that is no single number meets one of the device"
        if name in _FREE: return
        if name=='__getitem__': seen = [args[0]] # an index may lie on the CPU
        if name=='ctc_loss': seen = list(args[:2]) # so may the lengths
        others = [t for t in seen if not there(t) and t.dim() and t.layout==torch.strided]
        if others: raise RuntimeError(f'Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name}: {tuple(others[0].shape)} on the CPU)')
