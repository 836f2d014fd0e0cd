"A `Learner` that holds what is frozen; it has all its methods whichever of these modules is imported"
from ..core import losses # first: it loads the layers of fastai without the warning of torch
from . import learner, cache, plan, schedule, resume
