"What a person looks at; an `Attribution` shows itself whichever of these modules is imported"
from . import attributions, cards
