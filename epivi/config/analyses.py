"""Further analyses of a cohort's loci: what an entry of `analyses` may change, and how it is laid over the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

FOLDER = "analyses"  # below the folder of a cohort's results
MAIN = "main"  # the analysis that the configuration describes without any entry
ANALYSIS_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")

# Top-level keys that an entry may have. All others say what the loci and the samples' counts are, or where the results
# go, and every analysis of a cohort shares those.
ANALYSIS_KEYS = (
    "pedigree",
    "seed",
    "model",
    "relatives",
    "fit",
    "evidence",
    "controls",
    "compare",
    "design",
    "diagnose",
)
# Keys below these that are shared all the same: all analyses are divided into the same jobs.
SHARED_KEYS = (("evidence", "shard_loci"),)

KeyPath = tuple[Any, ...]


def analysis_folder(name: str | None) -> str:
    """What the path of an analysis's results has after the cohort's folder; nothing for MAIN, or without a name."""
    return "" if name in (None, MAIN) else f"/{FOLDER}/{name}"


def laid_over(base: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """`entry` over `base`, mapping by mapping; a key whose value in `entry` is None is removed."""
    result = dict(base)
    for key, value in entry.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            below = result.get(key)
            result[key] = laid_over(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def idle_removals(base: Mapping[str, Any], entry: Mapping[str, Any], path: KeyPath = ()) -> Iterator[KeyPath]:
    """Paths of keys that `entry` would remove and `base` does not have."""
    for key, value in entry.items():
        if value is None and key not in base:
            yield (*path, key)
        elif isinstance(value, Mapping):
            below = base.get(key)
            yield from idle_removals(below if isinstance(below, Mapping) else {}, value, (*path, key))


def shared_keys(entry: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[KeyPath]:
    """Paths of keys of `entry` that all analyses share; `known`: the top-level keys of a configuration."""
    for key in entry:
        if key in known and key not in ANALYSIS_KEYS:
            yield (key,)
    for section, key in SHARED_KEYS:
        below = entry.get(section)
        if isinstance(below, Mapping) and key in below:
            yield section, key
