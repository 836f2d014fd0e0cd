"What a person looks at; an `Attribution` shows itself whichever of these modules is imported"
from ..core import losses # first: it loads the layers of fastai without the warning of torch
from . import attributions, cards
