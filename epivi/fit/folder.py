"""The folder of a fit: readable hyper-parameters, the guide's weights, the loss trace, and checkpoints meanwhile."""

from __future__ import annotations

import io
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch

from epivi import __version__
from epivi.base.errors import UserError
from epivi.base.files import atomic_path, write_json
from epivi.fit.columns import FIT_TABLES
from epivi.fit.record import FIT
from epivi.tables.columns import FORMAT_VERSION, Column
from epivi.tables.parquet import Provenance, write_table

GUIDE, LOSS, CHECKPOINT, LOCK = "guide.pt", "loss.parquet", "checkpoint.pt", "fit.lock"
NOT_CONVERGED = "the fit had not converged after {} steps: raise fit.max_steps or look at loss.parquet"
log = logging.getLogger(__name__)

# What torch and json raise on damaged files; torch's messages run over many lines.
DAMAGE = (KeyError, TypeError, ValueError, RuntimeError, EOFError, OSError, UnpicklingError)


class Fitted(NamedTuple):
    """A finished fit as read back.

    learned: what all loci share, of the family's learned_type; trained_at: the same as it was when the guide was
    trained; stamp: identifies samples, pedigree and model; guide: a key of GUIDES; warnings: of the fit.
    """

    learned: Any
    trained_at: Any
    encoder_state: dict[str, Any]
    stamp: str
    hidden: int
    guide: str
    warnings: tuple[str, ...] = ()


class FinishedFit(Protocol):
    """What a fit has learned, as epivi.families.family.FitResult says it."""

    @property
    def learned(self) -> Any: ...

    @property
    def guide_state(self) -> dict[str, Any]: ...

    @property
    def trained_at(self) -> Any: ...

    @property
    def record(self) -> Mapping[str, Any]: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...


class FitTable(NamedTuple):
    """A table that belongs to a fit."""

    columns: Sequence[Column]
    rows: pa.Table


class FitOutcome(NamedTuple):
    """How the optimization ended."""

    steps: int
    converged: bool
    elapsed_s: float
    loss: list[tuple[int, float, float, float]]  # rows of the loss table


def save_fit(
    folder: Path,
    result: FinishedFit,
    outcome: FitOutcome,
    settings: dict[str, Any],
    stamp: str,
    provenance: Provenance,
) -> None:
    """Write a finished fit; fit.json comes last, so that its presence means that the rest is there."""
    with atomic_path(folder / GUIDE) as temporary:
        _save(result.guide_state, temporary)
    columns = FIT_TABLES["loss"]
    rows = list(zip(*outcome.loss, strict=True)) or [()] * len(columns)
    table = pa.table({column.name: pa.array(values, column.type) for column, values in zip(columns, rows, strict=True)})
    write_table(table, folder / LOSS, columns, provenance)
    held_out = [row[3] for row in outcome.loss if not math.isnan(row[3])]
    write_json(
        folder / FIT,
        {
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "seed": provenance.seed,
            "config_hash": provenance.config_hash,
            "pedigree_hash": provenance.pedigree_hash,
            "stamp": stamp,
            "settings": settings,
            "steps": outcome.steps,
            "converged": outcome.converged,
            "elapsed_s": round(outcome.elapsed_s, 1),
            "holdout_elbo_nats_per_locus": held_out[-1] if held_out else None,
            "hyperparameters": _as_mapping(result.learned),
            **({} if result.trained_at is None else {"variational_hyperparameters": _as_mapping(result.trained_at)}),
            **result.record,
            "warnings": [*([NOT_CONVERGED.format(outcome.steps)] if not outcome.converged else []), *result.warnings],
        },
    )


def _as_mapping(learned: Any) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in learned._asdict().items()
    }


def save_tables(folder: Path, tables: Mapping[str, FitTable], provenance: Callable[[str], Provenance]) -> None:
    """Write the tables that belong to a fit, each as <name>.parquet."""
    for name, table in tables.items():
        write_table(table.rows, folder / f"{name}.parquet", table.columns, provenance(name))


def load_fit(folder: Path, learned_type: Any) -> Fitted:
    """Read a finished fit of the family whose numbers are a `learned_type`, a NamedTuple of numbers and arrays.

    Raises UserError if there is none, it is damaged, or of a newer format.
    """
    path = folder / FIT
    try:
        record = json.loads(path.read_text())
        if int(record["format_version"]) > FORMAT_VERSION:
            raise UserError(
                f"{path}: format version {record['format_version']}, written by epivi {record['version']}; this epivi "
                f"({__version__}) reads up to {FORMAT_VERSION}"
            )
        learned = _from_mapping(record["hyperparameters"], learned_type)
        trained_at = _from_mapping(record.get("variational_hyperparameters", record["hyperparameters"]), learned_type)
        state = torch.load(folder / GUIDE, map_location="cpu", weights_only=True)
        settings = record["settings"]
        of_guide = (str(record["stamp"]), int(settings["hidden"]), str(settings["guide"]))
        return Fitted(learned, trained_at, state, *of_guide, tuple(map(str, record.get("warnings", ()))))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; expected a folder written by epivi fit") from None
    except DAMAGE as error:
        raise UserError(f"{folder}: not a whole fit written by epivi fit ({type(error).__name__})") from None


def _from_mapping(values: Mapping[str, Any], learned_type: Any) -> Any:
    fields: Any = (
        np.array(values[name], dtype=float) if isinstance(values[name], list) else float(values[name])
        for name in learned_type._fields
    )
    return learned_type(*fields)


def save_checkpoint(folder: Path, state: dict[str, Any], stamp: str, step: int, elapsed_s: float) -> None:
    """Write the state of a fit at a step, whole or not at all."""
    with atomic_path(folder / CHECKPOINT) as temporary:
        _save({"stamp": stamp, "step": step, "elapsed_s": elapsed_s, "state": state}, temporary)


def _save(value: dict[str, Any], path: Path) -> None:
    """torch.save through memory: writing to a full disk itself, it says neither why it fails nor where."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path.write_bytes(buffer.getbuffer())


def load_checkpoint(folder: Path, stamp: str, max_steps: int) -> tuple[dict[str, Any], float] | None:
    """State and elapsed seconds of a fit of the same inputs and settings that is not finished, or None without one.

    One that went beyond `max_steps` is none. Raises UserError if the checkpoint is damaged.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        if record["stamp"] != stamp:
            log.warning("%s: is of other inputs, another configuration or another epivi; starting anew", path)
            return None
        if record["step"] > max_steps:
            log.warning("%s: is at step %d, beyond fit.max_steps; starting anew", path, record["step"])
            return None
        return record["state"], float(record["elapsed_s"])
    except DAMAGE as error:
        raise UserError(
            f"{path}: a damaged checkpoint ({type(error).__name__}); remove it to start the fit anew"
        ) from None


def remove_checkpoint(folder: Path) -> None:
    (folder / CHECKPOINT).unlink(missing_ok=True)


def device_of(name: str, section: str) -> torch.device:
    """The device that a section of the configuration asks for. Raises UserError for `cuda` without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"{section}.device: cuda was asked for, but this machine shows no CUDA device; expected cpu or auto"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def use_threads(threads: int) -> None:
    """Let torch's kernels use this many threads, as the workflow's scheduler counts them."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
