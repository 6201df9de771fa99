"""Compile what the evidence of the family `epimutation` runs."""

from __future__ import annotations

from epivi.state_tables import compile_kernel

__all__ = ["compile_kernel"]
