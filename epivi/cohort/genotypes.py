"""Dosages of variants from a VCF or BCF, for the relatedness of samples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pysam

from epivi.base.errors import UserError

# METHOD: variants nearer than this to the last one that counts are left out: neighbours are inherited together.
MIN_DISTANCE_BP = 1000
MISSING = -1


def read_dosages(path: str | os.PathLike[str], names: Sequence[Sequence[str]]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Dosages of the alternative allele, int8 [V, K] with MISSING, and which entries of `names` the file has, [K].

    names: what each sample may be called in the file; the first that it has counts. Biallelic single-base variants with
    two called alleles, that differ among the samples, at least MIN_DISTANCE_BP apart.
    Raises UserError where the file cannot be read or has none of the samples.
    """
    try:
        with pysam.VariantFile(os.fspath(path)) as file:
            columns = _columns(path, file.header.samples, names)
            file.subset_samples(list(dict.fromkeys(columns.values())))
            rows = _rows(file, list(columns.values()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as VCF or BCF ({' '.join(str(error).split())})") from None
    return np.array(rows, dtype=np.int8).reshape(-1, len(columns)), tuple(columns)


def _columns(path: str | os.PathLike[str], known: Iterable[str], names: Sequence[Sequence[str]]) -> Mapping[int, str]:
    """Name in the file of each sample that it has."""
    held = set(known)
    found = {index: next((name for name in choices if name in held), "") for index, choices in enumerate(names)}
    columns = {index: name for index, name in found.items() if name}
    if not columns:
        raise UserError(f"{path}: has none of the cohort's samples or individuals, such as {names[0][0]!r}")
    return columns


def _rows(file: pysam.VariantFile, columns: Sequence[str]) -> list[list[int]]:
    rows, last = [], ("", 0)
    for record in file:
        is_near = record.contig == last[0] and record.start - last[1] < MIN_DISTANCE_BP
        if is_near or tuple(map(len, record.alleles or ())) != (1, 1):
            continue
        row = [_dosage(record.samples[name].allele_indices) for name in columns]
        called = {dosage for dosage in row if dosage != MISSING}
        if len(called) > 1:
            rows.append(row)
            last = (record.contig, record.start)
    return rows


def _dosage(alleles: tuple[int | None, ...] | None) -> int:
    if alleles is None or len(alleles) != 2 or None in alleles:
        return MISSING
    return sum(1 for allele in alleles if allele)
