"""Modules:

- `sft_nb.core`: The `Task` record and its registry, typed errors, atomic writing, the cache folder
- `sft_nb.groups`: Named layer groups, freezing that holds, and the table that shows both
- `sft_nb.heads`: New output layers, and the losses that train them"""

__version__ = "0.1.0"
