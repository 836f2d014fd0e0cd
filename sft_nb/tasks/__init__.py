"The tasks that the package brings along; importing this folder registers them and imports no torch"
from . import audio, chat, image, image_text, speech, text, tokens, translation
