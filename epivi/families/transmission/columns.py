"""Columns of the tables of the family `transmission`."""

from __future__ import annotations

STATISTICS = ("mean", "q05", "q50", "q95")
