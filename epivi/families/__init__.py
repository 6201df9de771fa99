"""The model families: a folder each, whose files are the steps of the workflow.

prepare: `prepare`, `families` and `learned_type`; compile: `compile_kernel`; fit: `start`; evidence: `columns`,
`tables` and CHUNK_LOCI; controls, of a family that is declared to have them: `variants` and `log_evidences`; misfit,
of the same: `drawn_counts` and `drawn_evidences`; posterior: `columns` and `table`; states, of a family that is
declared to have states: `tables` and CHUNK_LOCI; simulate: `draw`. A command imports the step that it needs and no
other, and the version of its code follows exactly that.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from epivi.config.declarations import DECLARATIONS

FAMILIES = tuple(DECLARATIONS)


def family_step(family: str, step: str) -> Any:
    """The module of one step of a family. `step` is written as a constant, which `epivi.base.code_version` reads."""
    return import_module(f"epivi.families.{family}.{step}")
