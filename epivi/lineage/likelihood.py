"""Likelihood of loci given rates, all states summed out: differentiable, in torch, for any batch of rates.

    p(reads | rates) = sum over states of all nodes
                       prod_founders founder[x_i] prod_others T(x_i | x_parents) prod_samples p(reads_s | x_node(s))

This is the definition; `epivi.lineage.kernel` computes the same numbers, for rates that all loci share, much
faster. Loci are last in memory: rates that differ from locus to locus have shape [L], a grid of rates [Q, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from epivi.lineage.elimination import SHARED, EliminationPlan, Table, Transmission
from epivi.lineage.transitions import GAIN, LOSS, UNIPARENTAL, outcross

SMALLEST = 1e-290  # relative to the largest entry of a table: smaller ones are set to it, so that nothing underflows
EVENTS = ((GAIN, 0), (LOSS, 0), (GAIN, 1), (LOSS, 1))  # and the number of the parent in whose gamete it happens


class EpimutationRates(NamedTuple):
    """What governs the states; the shapes broadcast to [...], which broadcasts against [..., L] of a likelihood."""

    alpha: Tensor  # [...], gains per copy and generation, in [0, 1]
    beta: Tensor  # [...], losses per copy and generation, in [0, 1]
    founder: Tensor  # [..., 3], proportions of UU, UM and MM in founders
    log_fitness: Tensor | None = None  # [...], log fitness of one more M copy; None: no selection


def shared_values(plan: EliminationPlan, rates: EpimutationRates) -> Tensor:
    """The founder's proportions and every table of transmission, [..., shared rows of the plan]."""
    tables = [_power(_one_generation(table, rates), table) for table in plan.transmissions]
    return _joined([rates.founder, *(table.flatten(-_axes(plan, k)) for k, table in enumerate(tables))])


def event_values(plan: EliminationPlan, rates: EpimutationRates) -> Tensor:
    """Probability of the end states and of at least one event on the branch, [..., 4 (EVENTS), shared rows].

    Zero at the founder's rows, and for the second parent of a table that has one.
    """
    rows = [torch.zeros_like(rates.founder)[..., None, :].expand(*rates.founder.shape[:-1], len(EVENTS), 3)]
    for place, table in enumerate(plan.transmissions):
        every = _power(_one_generation(table, rates), table)
        events = []
        for event, parent in EVENTS:
            if parent == 1 and table.mode != "outcross":
                events.append(torch.zeros_like(every))
            else:
                events.append(every - _power(_one_generation(table, rates, event, parent), table))
        axes = _axes(plan, place)
        rows.append(torch.stack(events, -axes - 1).flatten(-axes).clamp(min=0))
    return _joined(rows)


def _axes(plan: EliminationPlan, place: int) -> int:
    return 3 if plan.transmissions[place].mode == "outcross" else 2


def _joined(parts: list[Tensor]) -> Tensor:
    """Concatenated along the last axis, the others broadcast."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)


def _one_generation(
    table: Transmission, rates: EpimutationRates, without: str | None = None, parent: int = 0
) -> Tensor:
    arguments = rates.alpha, rates.beta, rates.log_fitness
    if table.mode == "outcross":
        mother, father = (without, None) if parent == 0 else (None, without)
        return outcross(*arguments, without_in_mother=mother, without_in_father=father)
    return UNIPARENTAL[table.mode](*arguments, without=without)


def _power(matrix: Tensor, table: Transmission) -> Tensor:
    return matrix if table.mode == "outcross" else torch.linalg.matrix_power(matrix, table.generations)


def sum_samples(plan: EliminationPlan, log_emission: Tensor) -> Tensor:
    """Log probabilities of each sample's reads [S, 3, ...] added up over the samples of each node, [N, 3, ...]."""
    nodes = torch.zeros((len(plan.lineage.nodes), *log_emission.shape[1:]), dtype=log_emission.dtype)
    return nodes.to(log_emission.device).index_add(
        0, torch.as_tensor(plan.lineage.samples, device=log_emission.device), log_emission
    )


def log_likelihood(plan: EliminationPlan, rates: EpimutationRates, log_emission: Tensor) -> Tensor:
    """Log likelihood of L loci in nats, [..., L].

    rates: shapes [...] that broadcast with [..., L], such as [] and [L], or [Q, 1] for a grid. log_emission: log
    probability of the reads of each node's samples given its state, [N, 3, ..., L]; zeros where it has none (see
    `sum_samples`).
    """
    shared = shared_values(plan, rates).movedim(-1, 0)  # [rows, ...]
    peak = log_emission.amax(1, keepdim=True).detach()
    axes = max(shared.dim() - 1, log_emission.dim() - 2)
    shared, emission = _with_axes(shared, 1, axes), _with_axes((log_emission - peak).exp(), 2, axes)
    log_scale = peak.sum((0, 1))
    tables: dict[Table, Tensor] = {}

    def values(table: Table) -> Tensor:
        if table.kind == SHARED:
            return shared[table.row : table.row + table.rows]
        if table in tables:
            return tables.pop(table)
        if table == plan.one:
            return torch.ones_like(emission[0, :1])
        return emission[table.scope[0]]

    for contraction in plan.contractions:
        left, right, out, _ = contraction
        scope = (*out.scope, *sorted({*left.scope, *right.scope} - {*out.scope}))
        product = _spread(values(left), left.scope, scope) * _spread(values(right), right.scope, scope)
        summed = product.flatten(0, len(scope) - 1) if scope else product[None]
        table = summed.unflatten(0, (out.rows, -1)).sum(1)
        scale = table.amax(0, keepdim=True).detach().clamp(min=torch.finfo(table.dtype).tiny)
        tables[out] = (table / scale).clamp(min=SMALLEST)
        log_scale = log_scale + scale[0].log()
    return tables[plan.result][0].log() + log_scale


def _with_axes(value: Tensor, before: int, axes: int) -> Tensor:
    """With axes of length one after the first `before`, so that `axes` follow them."""
    return value.reshape(*value.shape[:before], *[1] * (axes + before - value.dim()), *value.shape[before:])


def _spread(value: Tensor, own: tuple[int, ...], scope: tuple[int, ...]) -> Tensor:
    """A table [3^k, ...] with one axis for every node of `scope`, of length one for those that it does not have."""
    batch = value.shape[1:]
    value = value.reshape(*(3 for _ in own), *batch)
    kept = sorted(range(len(own)), key=lambda axis: scope.index(own[axis]))
    value = value.permute(*kept, *range(len(own), value.dim()))
    shape = [3 if node in own else 1 for node in scope]
    return value.reshape(*shape, *batch)
