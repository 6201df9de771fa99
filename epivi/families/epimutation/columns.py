"""Columns of the tables of the family `epimutation`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

STATISTICS = ("mean", "q05", "q50", "q95")


def labels(codes: NDArray[np.int64], words: Sequence[str]) -> pa.Array:
    """A column of words from their codes [rows]."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(list(words)))
