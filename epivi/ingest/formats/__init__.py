"""Readers of single formats, one file a format; the file's name is the format's."""

from __future__ import annotations

from pkgutil import iter_modules

# Known without importing a reader, so that `epivi ingest --help` starts at once.
FORMATS = tuple(sorted(module.name for module in iter_modules(__path__)))
