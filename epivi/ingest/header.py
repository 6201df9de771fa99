"""Columns found by their names in a header line, whatever the case of its letters."""

from __future__ import annotations

from collections.abc import Mapping

from epivi.base.errors import UserError
from epivi.ingest.text import Column, TextSource, require_column_count, split, without_header


def lowered_names(source: TextSource) -> list[str]:
    """Names in the header line, in small letters."""
    return [name.lower() for name in split(source.sample[0], source.any_whitespace)]


def named_columns(source: TextSource, kinds: Mapping[str, str]) -> tuple[TextSource, dict[str, Column]]:
    """The source with its header line skipped, and the columns of `kinds` (name -> kind) by name.

    Raises UserError if the header lacks one of them or names one twice, and if no row follows.
    """
    line, names = source.header_lines + 1, lowered_names(source)
    for name in kinds:
        found = names.count(name.lower())
        if found != 1:
            problem = f"lacks {name}" if found == 0 else f"names {name} {found} times"
            raise UserError(f"{source.path}: line {line}: the header {problem} (expected {', '.join(kinds)})")
    source = without_header(source)
    require_column_count(source, len(names), len(names))
    return source, {name: Column(names.index(name.lower()), name, kind) for name, kind in kinds.items()}
