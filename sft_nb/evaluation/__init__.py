"One row per item, and what follows from it; an `Evaluation` has all its methods whichever of these modules is imported"
from . import results, evaluate, tables, slices, compare, calibration
