"The tasks that the package brings along; importing this folder registers them and imports no torch"
from . import image, image_text, speech, text, translation
