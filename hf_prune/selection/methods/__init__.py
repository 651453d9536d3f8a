"""
The selection methods: one file each, with one function that [`method`] registers.

A method is added by adding a file here; nothing else has to know of it.
"""

from importlib import import_module
from pkgutil import iter_modules

for found in iter_modules(__path__):
    import_module(f"{__name__}.{found.name}")
