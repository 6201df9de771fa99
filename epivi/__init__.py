"""epivi: calibrated per-locus evidence on the inheritance of DNA methylation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epivi.families.transmission.in_memory import Evidence, evidence
    from epivi.results.results import Results, open_results

__all__ = ["Evidence", "Results", "__version__", "evidence", "open_results"]
__version__ = "0.1.0"

_HOMES = {
    "Evidence": "epivi.families.transmission.in_memory",
    "Results": "epivi.results.results",
    "evidence": "epivi.families.transmission.in_memory",
    "open_results": "epivi.results.results",
}


def __getattr__(name: str) -> Any:
    """What scripts use, imported when it is asked for, so that `epivi --help` stays fast."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'epivi' has no attribute {name!r}")
