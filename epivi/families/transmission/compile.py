"""Compile what the evidence of the family `transmission` runs."""

from __future__ import annotations

from epivi.field.compiled.nodes import compile_kernel

__all__ = ["compile_kernel"]
