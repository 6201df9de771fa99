"""What the record of a fit says to those that need no guide; without torch, so that they start fast."""

from __future__ import annotations

import json
from pathlib import Path

from epivi.base.errors import UserError

FIT = "fit.json"


def fit_warnings(folder: Path) -> tuple[str, ...]:
    """Warnings of the fit in a folder. Raises UserError where its record is missing or damaged."""
    path = folder / FIT
    try:
        return tuple(map(str, json.loads(path.read_text()).get("warnings", ())))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a folder written by epivi fit") from None
    except (AttributeError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a record written by epivi fit ({type(error).__name__})") from None
