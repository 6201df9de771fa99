"""The order in which a lineage's states are summed out, made once and the same for all loci.

The probability of a locus is a sum over the states of N nodes of a product of tables: the founders' proportions, the
transmission to every other node, and what the samples of a node say of its state. Nodes are summed out one at a time
(variable elimination). Each is a chain of *contractions* of two tables, of which the last one sums the node out:

    out[scope of out] = sum over eliminated of left[scope of left] * right[scope of right]

On a lineage this is Felsenstein's pruning, with two parents to a child Elston-Stewart's peeling, and where ancestors
meet again (inbreeding loops) the same contractions have larger tables. The order is the min-fill one: next comes the
node whose neighbours are most nearly known to be neighbours, leaves first on a lineage. The reverse of the same
contractions gives all posterior probabilities: see `epivi.lineage.kernel`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.base.errors import UserError
from epivi.lineage.lineage import FOUNDER, Lineage

# METHOD: exact or refused. 3^10 = 59,049 states of one table take seconds for a thousand loci.
LARGEST_CLIQUE_NODES = 10

# Kinds of tables: what a contraction reads.
SHARED, LOCUS = "shared", "locus"


class Table(NamedTuple):
    """A table over the states of the nodes in `scope`, 3^len(scope) rows from `row` on, the last node's state fastest.

    SHARED tables are the same at all loci (proportions, transmission) and lie in the vector of shared values; LOCUS
    tables have a value for each locus: what samples say, and messages.
    """

    kind: str
    scope: tuple[int, ...]
    row: int

    @property
    def rows(self) -> int:
        return int(3 ** len(self.scope))


class Contraction(NamedTuple):
    """out = sum of left * right over the nodes of their scopes that out does not have. `branch`: the first branch of
    the node whose transmission `right` is, or -1."""

    left: Table
    right: Table
    out: Table
    branch: int


class Transmission(NamedTuple):
    """A table of transmission that nodes share: `mode` over `generations` generations, rows from `row` on."""

    mode: str
    generations: int
    row: int

    @property
    def rows(self) -> int:
        return 27 if self.mode == "outcross" else 9


class EliminationPlan(NamedTuple):
    """Everything that does not depend on loci or rates.

    Locus rows 3 i to 3 i + 2 are what the samples of node i say; `one` is a row of ones that follows them. The first
    three shared values are the founders' proportions.
    """

    lineage: Lineage
    transmissions: tuple[Transmission, ...]
    shared_rows: int
    contractions: tuple[Contraction, ...]
    result: Table  # of scope (): the probability
    one: Table
    locus_rows: int


class _Builder:
    """Locus tables so far, and contractions so far."""

    def __init__(self, nodes: int) -> None:
        self.one = Table(LOCUS, (), 3 * nodes)
        self.rows = 3 * nodes + 1
        self.contractions: list[Contraction] = []

    def contract(self, left: Table, right: Table, summed: int | None, branch: int = -1) -> Table:
        scope = tuple(sorted({*left.scope, *right.scope} - {summed}))
        out = Table(LOCUS, scope, self.rows)
        self.rows += out.rows
        self.contractions.append(Contraction(left, right, out, branch))
        return out


def build_plan(lineage: Lineage, name: str = "pedigree") -> EliminationPlan:
    """The plan of a lineage; name: what an error calls the pedigree, its path.

    Raises UserError where the loops of the pedigree need a table over more than LARGEST_CLIQUE_NODES nodes.
    """
    transmissions = _transmissions(lineage)
    row = {(table.mode, table.generations): table.row for table in transmissions}
    size = len(lineage.nodes)
    builder = _Builder(size)
    tables = [Table(LOCUS, (node,), 3 * node) for node in range(size)]
    branch_of: dict[Table, int] = {}
    branches = 0
    for node, (kind, parents) in enumerate(zip(lineage.transmission, lineage.parents, strict=True)):
        shared = Table(SHARED, (*parents, node), row.get((kind, lineage.generations[node]), 0))
        tables.append(shared)
        if parents:
            branch_of[shared] = branches
            branches += len(parents)
    for node in _order(lineage, name):
        bucket = sorted((table for table in tables if node in table.scope), key=_smallest_messages_first)
        tables = [table for table in tables if node not in table.scope]
        message = bucket[0]
        for table in bucket[1:]:
            is_last = table is bucket[-1]
            message = builder.contract(message, table, node if is_last else None, branch_of.get(table, -1))
        tables.append(message)
    result = builder.one
    for table in tables:  # one for each family
        result = builder.contract(result, table, None)
    return EliminationPlan(
        lineage,
        transmissions,
        transmissions[-1].row + transmissions[-1].rows if transmissions else 3,
        tuple(builder.contractions),
        result,
        builder.one,
        builder.rows,
    )


def _smallest_messages_first(table: Table) -> tuple[bool, int, int]:
    return table.kind == SHARED, len(table.scope), table.row


def _transmissions(lineage: Lineage) -> tuple[Transmission, ...]:
    kinds = sorted(set(zip(lineage.transmission, lineage.generations, strict=True)) - {(FOUNDER, 1)})
    tables: list[Transmission] = []
    row = 3
    for mode, generations in kinds:
        tables.append(Transmission(mode, generations, row))
        row += tables[-1].rows
    return tuple(tables)


def _order(lineage: Lineage, name: str) -> list[int]:
    """Nodes in the order in which they are summed out: least fill, then fewest neighbours, then the last one."""
    neighbours: list[set[int]] = [set() for _ in lineage.nodes]
    for node, parents in enumerate(lineage.parents):
        for member in (node, *parents):
            neighbours[member] |= {node, *parents} - {member}
    left = set(range(len(neighbours)))
    order = []

    def cost(node: int) -> tuple[int, int, int]:
        around = sorted(neighbours[node])
        pairs = ((a, b) for place, a in enumerate(around) for b in around[place + 1 :])
        return sum(b not in neighbours[a] for a, b in pairs), len(around), -node

    while left:
        node = min(left, key=cost)
        around = neighbours[node]
        if len(around) + 1 > LARGEST_CLIQUE_NODES:
            names = ", ".join(repr(lineage.nodes[member]) for member in sorted({node, *around})[:12])
            raise UserError(
                f"{name}: the inbreeding loops through {names} need the states of {len(around) + 1} individuals at "
                f"once (3^{len(around) + 1}); expected at most {LARGEST_CLIQUE_NODES}: leave out samples or ancestors"
            )
        for member in around:
            neighbours[member] = (neighbours[member] | around) - {member, node}
        left.remove(node)
        order.append(node)
    return order


def configurations(contraction: Contraction) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Rows of left, right and out for each state of all nodes in both scopes, int32 [3^k] each, in the order of out."""
    left, right, out, _ = contraction
    scope = (*out.scope, *sorted({*left.scope, *right.scope} - {*out.scope}))
    digits = np.indices((3,) * len(scope)).reshape(len(scope), 3 ** len(scope))
    place = {node: position for position, node in enumerate(scope)}

    def rows(table: Table) -> NDArray[np.int32]:
        row = np.zeros(digits.shape[1], dtype=np.int64)
        for node in table.scope:
            row = 3 * row + digits[place[node]]
        return (row + table.row).astype(np.int32)

    return rows(left), rows(right), rows(out)
