"One row per item, and what follows from it; an `Evaluation` has all its methods whichever of these modules is imported"
from ..core import losses # first: it loads the layers of fastai without the warning of torch
from . import results, evaluate, tables, slices, compare, calibration
