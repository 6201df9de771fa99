"""What the record of a fit says without its guide."""

from __future__ import annotations

from pathlib import Path

import pytest

from epivi.base.errors import UserError
from epivi.fit.record import FIT, fit_warnings


def test_warnings_are_read_or_the_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fit\.json: no such file; expected a folder written by epivi fit"):
        fit_warnings(tmp_path)
    path = tmp_path / FIT
    path.write_text('{"steps": 3}')
    assert fit_warnings(tmp_path) == (), "of an earlier version"
    path.write_text('{"warnings": ["one", "two"]}')
    assert fit_warnings(tmp_path) == ("one", "two")
    for damaged in ("", "[1]", '{"warnings": 3}'):
        path.write_text(damaged)
        with pytest.raises(UserError, match="not a record written by epivi fit"):
            fit_warnings(tmp_path)
