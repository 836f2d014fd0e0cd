"A `Learner` that holds what is frozen; it has all its methods whichever of these modules is imported"
from . import learner, cache, plan, schedule, resume
