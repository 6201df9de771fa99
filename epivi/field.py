"""The latent Gaussian field of one hypothesis: who shares what, as polynomials in the transmissibility.

Under a hypothesis the logit of sample s of individual i(s) is

    y_s = x_s' beta + b_i(s),     b ~ N(0, sigma^2 [rho A(tau) + (1 - rho) eta G + (1 - rho)(1 - eta) I])

with A the covariance that transmission induces along the pedigree, G the co-membership of a sample-sheet column and I
the individual's own deviation. Every entry of A is a polynomial in the one free transmissibility tau, so the pedigree
is walked once, here, and neither the compiled kernel nor the Pyro model ever sees it again. Individuals without a
sample vanish exactly, because A is only needed among sampled individuals.

# METHOD: the deviation e belongs to the individual, not to the sample: replicate samples of one individual share b, so
# that the likeness of replicates never counts as transmission.

A sample may be one haplotype of its individual. With h_m and h_p the effects of the chromosomes from mother and father,

    h_m = tau_m a_mother + s_m,    h_p = tau_p a_father + s_p,    a = (h_m + h_p) / 2,    Var(a) = 1

    Cov(h_m, h_p) = c = tau_m tau_p Cov(a_mother, a_father),    Var(h_m) = Var(h_p) = 2 - c

which gives the individual the same a as above. A haplotype depends on one parent only: whatever the mother lacks or
does not transmit, h_m is not like anything of the father's.

# METHOD: which of the mother's two chromosomes is handed on is not known, so that h_m follows their mean a_mother: the
# Gaussian with the mean and covariance of the mixture over this choice.
# METHOD: of a haplotype whose parent of origin is unknown the field has the mean and covariance of the mixture of both
# labellings, with probability 1/2 each, at every locus anew: its covariance with every other individual is that of a,
# with the other haplotype of the same file c. The label HP is only used at one locus, hence within a phase set. What
# the Gaussian costs does not show in the probabilities of 20,000 loci (tests/slow/test_haplotype_calibration.py).
# METHOD: on the logit scale a haplotype deviates as much as an individual: b takes h / sqrt(2), and a deviation e of
# its own. If alleles were independent, the mean of two would vary half as much; then only sigma differs between the
# two, not the shares of its parts, which the hypotheses are about.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from epivi.errors import UserError
from epivi.haplotypes import Unit, check_sexual, sampled_units
from epivi.hypotheses import Hypothesis
from epivi.pedigree import Pedigree
from epivi.samples import SampleSheet, design_matrix, group_index


class LatentField(NamedTuple):
    """Structure of b and of the mean under one hypothesis; S samples, P effects with the intercept.

    N latents: the sampled individuals, or their haplotypes.

    The N latents are ordered block by block; b is independent between blocks. Within a block the pair (row, column <=
    row) has A = sum over its entries of coefficient * tau^exponent; rows and columns count within the block.
    """

    latent_of_sample: NDArray[np.int32]  # [S]
    block_start: NDArray[np.int32]  # [F + 1], first latent of each block
    entry_start: NDArray[np.int32]  # [F + 1], first entry of each block
    entry_row: NDArray[np.int32]  # [E]
    entry_column: NDArray[np.int32]  # [E]
    entry_exponent: NDArray[np.int32]  # [E]
    entry_coefficient: NDArray[np.float64]  # [E]
    group: NDArray[np.int32]  # [N], level of the environment column, -1 where there is none
    design: NDArray[np.float64]  # [S, P], first column the intercept
    design_column: NDArray[np.int32]  # [P - 1], which cohort covariate each further column is
    individual: NDArray[np.int32]  # [N], index into the cohort's sampled individuals and haplotypes


class Cohort(NamedTuple):
    """What the model needs to know of samples and pedigree, without any path or file."""

    samples: tuple[str, ...]
    individuals: tuple[str, ...]  # sampled individuals and haplotypes, in the order of their first sample
    individual_of_sample: NDArray[np.int32]  # [S]
    false_methylated: NDArray[np.float64]  # [S], eps
    false_unmethylated: NDArray[np.float64]  # [S], delta
    covariates: tuple[str, ...]  # names of the columns of the covariate matrix
    fields: tuple[LatentField, ...]  # one for each hypothesis


def has_exact_reads(cohort: Cohort) -> bool:
    """Whether no sample has a conversion or call error."""
    return not (cohort.false_methylated.any() or cohort.false_unmethylated.any())


def build_cohort(
    sheet: SampleSheet, pedigree: Pedigree, covariates: Sequence[str], hypotheses: Sequence[Hypothesis]
) -> Cohort:
    """Join sample sheet, pedigree and hypotheses.

    Raises UserError for a covariate or environment column that the sheet lacks, where replicate samples of one
    individual lie in different groups of an environment column, and for haplotypes that cannot be those of one
    individual with two parents.
    """
    units, individual_of_sample = sampled_units(sheet)
    check_sexual(units, pedigree, sheet)
    wanted = list(dict.fromkeys([*covariates, *(name for h in hypotheses for name in h.covariates)]))
    matrices = {name: design_matrix(sheet, [name]) for name in wanted}
    names = tuple(column for name in wanted for column in matrices[name][1])
    fields = tuple(
        _latent_field(sheet, pedigree, covariates, hypothesis, units, individual_of_sample, matrices, names)
        for hypothesis in hypotheses
    )
    return Cohort(
        sheet.samples,
        tuple(unit.name for unit in units),
        individual_of_sample,
        sheet.false_methylated,
        sheet.false_unmethylated,
        names,
        fields,
    )


class Passed(Protocol):
    """The share of a parent's deviation that is passed on: a number, or "tau" where it is a free parameter."""

    @property
    def maternal(self) -> float | Literal["tau"]: ...

    @property
    def paternal(self) -> float | Literal["tau"]: ...


def transmission_polynomials(pedigree: Pedigree, passed: Passed, keep: NDArray[np.int32]) -> NDArray[np.float64]:
    """Coefficients of A(tau) among the individuals `keep`.

    Returns [K, K, E]: A[i, j](tau) = sum_e out[i, j, e] tau^e, by the tabular method with polynomials for entries; the
    variance of every individual is 1 (stationary), whatever the inbreeding.
    """
    table = _individual_table(pedigree, passed)
    return _stacked([[_entry(table, i, j) for j in keep] for i in keep])


def _individual_table(pedigree: Pedigree, passed: Passed) -> list[list[NDArray[np.float64]]]:
    """Polynomials Cov(a_i, a_j)(tau) of all individuals, lower triangle."""
    maternal, paternal = _path_polynomial(passed.maternal), _path_polynomial(passed.paternal)
    n = len(pedigree.individuals)
    table: list[list[NDArray[np.float64]]] = []
    zero = np.zeros(1)
    for child in range(n):
        steps = _parent_steps(pedigree, child, maternal, paternal)
        row = [
            _sum_polynomials([np.convolve(path, _entry(table, parent, other)) for parent, path in steps])
            if steps
            else zero
            for other in range(child)
        ]
        table.append([*row, np.ones(1)])
    return table


def _stacked(entries: list[list[NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Polynomials of different lengths as one array [K, K, E]."""
    degree = max((len(entry) for row in entries for entry in row), default=1)
    out = np.zeros((len(entries), len(entries), degree))
    for a, row in enumerate(entries):
        for b, entry in enumerate(row):
            out[a, b, : len(entry)] = entry
    return out


def unit_polynomials(pedigree: Pedigree, passed: Passed, units: Sequence[Unit]) -> NDArray[np.float64]:
    """Coefficients of A(tau) among individuals and haplotypes, [K, K, E]: see the formulas above."""
    position = {name: index for index, name in enumerate(pedigree.individuals)}
    where = [position[unit.individual] for unit in units]
    if not any(unit.is_haplotype for unit in units):
        return transmission_polynomials(pedigree, passed, np.array(where, dtype=np.int32))
    paths = {"maternal": _path_polynomial(passed.maternal), "paternal": _path_polynomial(passed.paternal)}
    parents = {"maternal": pedigree.mother, "paternal": pedigree.father}
    table = _individual_table(pedigree, passed)
    zero, one = np.zeros(1), np.ones(1)

    def with_individuals(unit: Unit, i: int) -> list[NDArray[np.float64]]:
        """Covariance of the unit, before its scale, with every individual."""
        if unit.origin in ("both", "unknown"):
            return [_entry(table, i, j) for j in range(len(table))]
        parent, path = int(parents[unit.origin][i]), paths[unit.origin]
        # What does not descend from i is like the haplotype through the one parent; what does, through i itself.
        row = [zero if parent < 0 else np.convolve(path, _entry(table, parent, j)) for j in range(i)] + [one]
        for j in range(i + 1, len(table)):
            steps = _parent_steps(pedigree, j, paths["maternal"], paths["paternal"])
            row.append(_sum_polynomials([np.convolve(step, row[k]) for k, step in steps] or [zero]))
        return row

    rows = [with_individuals(unit, i) for unit, i in zip(units, where, strict=True)]

    def between_haplotypes(i: int) -> NDArray[np.float64]:
        """c: covariance of the two haplotypes of an individual."""
        mother, father = int(pedigree.mother[i]), int(pedigree.father[i])
        if mother < 0 or father < 0:
            return zero
        return np.convolve(np.convolve(paths["maternal"], paths["paternal"]), _entry(table, mother, father))

    def covariance(k: int, m: int) -> NDArray[np.float64]:
        """Of units k and m, the individual of m no earlier than that of k, before their scales."""
        first, second, i, j = units[k], units[m], where[k], where[m]
        if i == j:
            return _within_individual(first, second, between_haplotypes(i))
        if second.origin in ("both", "unknown"):
            return rows[k][j]
        parent = int(parents[second.origin][j])
        return zero if parent < 0 else np.convolve(paths[second.origin], rows[k][parent])

    scale = [np.sqrt(0.5) if unit.is_haplotype else 1.0 for unit in units]
    pairs = range(len(units))
    return _stacked(
        [
            [scale[k] * scale[m] * (covariance(k, m) if where[k] <= where[m] else covariance(m, k)) for m in pairs]
            for k in pairs
        ]
    )


def _within_individual(first: Unit, second: Unit, c: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance of two units of one individual, before their scales; c is that of its haplotypes."""
    if first == second and first.is_haplotype:
        return _sum_polynomials([np.array([2.0]), -c])
    is_known_pair = {first.origin, second.origin} == {"maternal", "paternal"}
    is_unknown_pair = first.origin == second.origin == "unknown" and first.same_phasing(second)
    # A haplotype with the mean of both, or with one that is as likely itself as the other: (2 - c + c) / 2.
    return c if is_known_pair or is_unknown_pair else np.ones(1)


def _parent_steps(
    pedigree: Pedigree, child: int, maternal: NDArray[np.float64], paternal: NDArray[np.float64]
) -> list[tuple[int, NDArray[np.float64]]]:
    """Known parents, and the polynomial by which each passes its effect on."""
    if pedigree.mode[child] == "sexual":
        paths = ((pedigree.mother[child], maternal), (pedigree.father[child], paternal))
        return [(int(parent), 0.5 * path) for parent, path in paths if parent >= 0]
    if pedigree.mother[child] < 0:
        return []
    # METHOD: the one parent of a selfed or clonal child is mother and father, so a generation passes
    # (tau_m + tau_p) / 2, and an edge of g generations its g-th power.
    both = 0.5 * np.polynomial.polynomial.polyadd(maternal, paternal)
    return [(int(pedigree.mother[child]), np.polynomial.polynomial.polypow(both, int(pedigree.generations[child])))]


def _path_polynomial(value: float | str) -> NDArray[np.float64]:
    return np.array([0.0, 1.0]) if value == "tau" else np.array([float(value)])


def _entry(table: list[list[NDArray[np.float64]]], i: int, j: int) -> NDArray[np.float64]:
    return table[i][j] if j <= i else table[j][i]


def _sum_polynomials(terms: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    total = np.zeros(max(map(len, terms)))
    for term in terms:
        total[: len(term)] += term
    return total


def _latent_field(
    sheet: SampleSheet,
    pedigree: Pedigree,
    covariates: Sequence[str],
    hypothesis: Hypothesis,
    units: tuple[Unit, ...],
    individual_of_sample: NDArray[np.int32],
    matrices: dict[str, tuple[NDArray[np.float64], tuple[str, ...]]],
    names: tuple[str, ...],
) -> LatentField:
    n = len(units)
    polynomials = np.zeros((n, n, 1))
    if hypothesis.transmits:
        polynomials = unit_polynomials(pedigree, hypothesis, units)
    group = _individual_groups(sheet, hypothesis.environment_column, individual_of_sample, n)
    order, block_start = _blocks(polynomials, group)
    entry_start, entries, coefficients = _entries(polynomials, order, block_start)
    latent_of_individual = np.empty(n, dtype=np.int32)
    latent_of_individual[order] = np.arange(n, dtype=np.int32)
    used = list(dict.fromkeys([*covariates, *hypothesis.covariates]))
    columns = [matrices[name][0] for name in used]
    column_names = [column_name for name in used for column_name in matrices[name][1]]
    return LatentField(
        latent_of_sample=latent_of_individual[individual_of_sample],
        block_start=block_start,
        entry_start=entry_start,
        entry_row=entries[:, 0].copy(),
        entry_column=entries[:, 1].copy(),
        entry_exponent=entries[:, 2].copy(),
        entry_coefficient=coefficients,
        group=group[order],
        design=np.concatenate([np.ones((len(sheet.samples), 1)), *columns], axis=1),
        design_column=np.array([names.index(name) for name in column_names], dtype=np.int32),
        individual=order,
    )


def _blocks(polynomials: NDArray[np.float64], group: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Individuals in the order of their independent blocks [N], and the first of each block [F + 1]."""
    linked = (polynomials != 0).any(axis=-1) | ((group[:, None] == group[None, :]) & (group[:, None] >= 0))
    np.fill_diagonal(linked, True)
    _, block = connected_components(coo_array(linked), directed=False)
    order = np.argsort(block, kind="stable").astype(np.int32)
    return order, np.searchsorted(block[order], np.arange(block.max() + 2)).astype(np.int32)


def _entries(
    polynomials: NDArray[np.float64], order: NDArray[np.int32], block_start: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
    """First entry of each block [F + 1]; (row, column, exponent) of every term [E, 3]; coefficients [E]."""
    rows: list[tuple[int, int, int]] = []
    coefficients: list[float] = []
    entry_start = [0]
    for start, stop in pairwise(block_start):
        members = order[start:stop]
        for row in range(stop - start):
            for column in range(row + 1):
                polynomial = polynomials[members[row], members[column]]
                exponents = np.flatnonzero(polynomial)
                rows += [(row, column, int(exponent)) for exponent in exponents]
                coefficients += polynomial[exponents].tolist()
        entry_start.append(len(rows))
    entries = np.array(rows, dtype=np.int32).reshape(-1, 3)
    return np.array(entry_start, dtype=np.int32), entries, np.array(coefficients)


def _individual_groups(
    sheet: SampleSheet, column: str | None, individual_of_sample: NDArray[np.int32], n: int
) -> NDArray[np.int32]:
    """Level of the environment column of each sampled individual, -1 without such a column."""
    if column is None:
        return np.full(n, -1, dtype=np.int32)
    levels, _ = group_index(sheet, column)
    group = np.full(n, -1, dtype=np.int32)
    for sample, (individual, level) in enumerate(zip(individual_of_sample, levels, strict=True)):
        if group[individual] not in (-1, level):
            raise UserError(
                f"{sheet.path}, line {sheet.lines[sample]}, column {column}: the replicate samples of individual "
                f"{sheet.individuals[sample]!r} lie in different groups; expected one group an individual"
            )
        group[individual] = level
    return group


def dense_covariance(
    field: LatentField, spread: float, heritable: float, environment: float, residual: float, tau: float
) -> NDArray[np.float64]:
    """Covariance [N, N] of b for one value of every parameter; shares sum to one. Slow, for tests and simulation."""
    n = len(field.group)
    transmitted = np.zeros((n, n))
    for f, start in enumerate(field.block_start[:-1]):
        entries = slice(field.entry_start[f], field.entry_start[f + 1])
        rows, columns = field.entry_row[entries] + start, field.entry_column[entries] + start
        values = field.entry_coefficient[entries] * tau ** field.entry_exponent[entries].astype(float)
        np.add.at(transmitted, (rows, columns), values)
    transmitted = transmitted + np.tril(transmitted, -1).T
    together = ((field.group[:, None] == field.group[None, :]) & (field.group[:, None] >= 0)).astype(float)
    return spread**2 * (heritable * transmitted + environment * together + residual * np.eye(n))
