"""Modules:

- `sft_nb.core`: The `Task` record and its registry, typed errors, atomic writing, the cache folder"""

__version__ = "0.1.0"
