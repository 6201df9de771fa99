"""Readers of pedigrees: our own table, PLINK files, AlphaBeta lists."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from epivi.base.errors import UserError
from epivi.base.files import expand_home
from epivi.cohort.pedigree import MISSING_PARENT, MODES, SEXES, Pedigree, close_name, logger
from epivi.cohort.samples import Table, as_texts, check_unique, columns_of, read_lines, read_node_list, read_table
from epivi.config.load import load_schema, suggestion

# ---- readers


@dataclass(frozen=True)
class Record:
    """One individual as a file describes it; parents by name, None where not known. mode is None where not said."""

    individual: str
    mother: str | None
    father: str | None
    sex: str
    mode: str | None
    generations: int
    line: int


def read_pedigree(source: str | os.PathLike[str] | Mapping[str, str]) -> Pedigree:
    """Read a pedigree.

    source: path of a PLINK `.ped` or `.fam` file or of a tab-separated table (any other name), or AlphaBeta's lists as
    {"nodes": path, "edges": path}, also as JSON text. Raises UserError naming file and line.
    """
    if isinstance(source, Mapping):
        return _build(*_read_alphabeta(source))
    if os.fspath(source).lstrip().startswith("{"):
        return _build(*_read_alphabeta(_lists(os.fspath(source))))
    source = expand_home(source)
    extension = Path(source).suffix.lower()
    if extension == ".fn":
        raise UserError(f"{source}: an AlphaBeta list alone is not a pedigree: expected {{nodes: PATH, edges: PATH}}")
    return _build(source, _read_plink(source) if extension in (".ped", ".fam") else _read_own(source))


def _read_own(path: str) -> list[Record]:
    schema = load_schema("pedigree")
    return _records(path, read_table(path, "pedigree", required=schema["required"], known=list(schema["properties"])))


def pedigree_of_table(table: Any) -> Pedigree:
    """The pedigree that a table in memory describes, by the columns of a pedigree file.

    table: a mapping from names to one value an individual, or a DataFrame; None and NaN are empty. Raises UserError as
    `read_pedigree` does, with the number of the row, from 1, in place of a line.
    """
    what, schema = "pedigree", load_schema("pedigree")
    texts = {name: as_texts(values) for name, values in columns_of(table, what).items()}
    for name in schema["required"]:
        if name not in texts:
            raise UserError(f"{what}: no column {name!r}: expected {', '.join(schema['required'])}")
    size = len(texts["individual"])
    for name, values in texts.items():
        if name not in schema["properties"]:
            raise UserError(f"{what}: unknown column {name!r}; {suggestion(name, schema['properties'])}")
        if len(values) != size:
            raise UserError(f"{what}: column {name!r} has {len(values)} values: expected {size}, one an individual")
    rows = tuple(zip(*texts.values(), strict=True))
    return _build(what, _records(what, Table(what, tuple(texts), rows, tuple(range(1, size + 1)))))


def _records(path: str, table: Table) -> list[Record]:
    names = ("individual", "mother", "father", "sex", "mode", "generations")
    records = []
    for row in zip(*(table.column(name) for name in names), table.lines, strict=True):
        individual, mother, father, sex, mode, generations, line = row
        place = f"{path} line {line}"
        if individual in MISSING_PARENT:
            raise UserError(f"{place}: individual is {individual!r}: expected a name")
        if mode.lower() not in (*MODES, *map(str.lower, MISSING_PARENT)):
            raise UserError(
                f"{place}: mode is {mode!r}: expected {', '.join(MODES)} or empty; {suggestion(mode, MODES)}"
            )
        records.append(
            Record(
                individual,
                _parent(mother),
                _parent(father),
                _sex(sex, place),
                mode.lower() if mode.lower() in MODES else None,
                _generations(generations, "generations", place),
                line,
            )
        )
    return records


def _read_plink(path: str) -> list[Record]:
    """PLINK .fam (6 columns) and .ped (6 columns and genotypes, which are ignored); blanks between columns."""
    records: list[Record] = []
    family_of: dict[str, tuple[str, int]] = {}
    columns = 6 if path.lower().endswith(".fam") else None
    for line, text in read_lines(path, "pedigree"):
        cells = text.split()
        columns = columns or max(len(cells), 6)
        if len(cells) != columns:
            raise UserError(f"{path} line {line}: {len(cells)} columns, expected {columns}")
        family, individual, father, mother, sex = cells[:5]
        if individual in MISSING_PARENT:
            raise UserError(f"{path} line {line}: individual id is {individual!r}: expected a name")
        other, first = family_of.setdefault(individual, (family, line))
        if other != family:
            raise UserError(
                f"{path} line {line}: individual id {individual!r} of family {family!r} is also in family {other!r} on "
                f"line {first}: expected ids that are unique over families"
            )
        place = f"{path} line {line}"
        records.append(Record(individual, _parent(mother), _parent(father), _sex(sex, place), None, 1, line))
    _check_families(path, records, {name: family for name, (family, _) in family_of.items()})
    return records


def _check_families(path: str, records: Sequence[Record], family_of: Mapping[str, str]) -> None:
    for record in records:
        record_family = family_of[record.individual]
        for parent in (record.mother, record.father):
            if parent is not None and family_of.get(parent, record_family) != record_family:
                raise UserError(
                    f"{path} line {record.line}: parent {parent!r} of {record.individual!r} is in family "
                    f"{family_of[parent]!r}, not {record_family!r}"
                )


def _lists(text: str) -> dict[str, str]:
    try:
        lists = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"pedigree {text!r}: not valid JSON: {error.msg}") from None
    return {str(key): str(value) for key, value in lists.items()}


def _read_alphabeta(lists: Mapping[str, str]) -> tuple[str, list[Record]]:
    """Path of the edge list, and one record a node of AlphaBeta's node and edge lists, every edge a selfing."""
    if set(lists) != {"nodes", "edges"}:
        raise UserError(f"pedigree: keys {', '.join(map(repr, lists))}: expected nodes and edges")
    nodes, path = read_node_list(lists["nodes"]), expand_home(lists["edges"])
    generation = dict(zip(nodes.nodes, nodes.generations, strict=True))
    separator = r"(?:(?<=\S)[ \t]*,[ \t]*|[ \t]+)(?=\S)"
    table = read_table(path, "edge list", required=("from", "to"), optional=("gendiff",), separator=separator)
    edges: dict[str, Record] = {}
    contradictions = []
    for parent, child, gap, line in zip(
        table.column("from"), table.column("to"), table.column("gendiff"), table.lines, strict=True
    ):
        place = f"{path} line {line}"
        for node in (parent, child):
            if node not in generation:
                hint = close_name(node, list(generation))
                raise UserError(f"{place}: node {node!r} is not in the node list {nodes.path}{hint}")
        if child in edges:
            first = edges[child].line
            raise UserError(f"{place}: node {child!r} has a second parent, the first is on line {first}: expected one")
        start, end = generation[parent], generation[child]
        between = None if start is None or end is None else end - start
        declared = None if gap in MISSING_PARENT else _generations(gap, "gendiff", place)
        generations = _edge_generations(declared, between, place)
        if declared not in (None, generations):
            contradictions.append(f"line {line}, {parent} to {child}: {declared} against {generations}")
        edges[child] = Record(child, parent, None, "unknown", "selfing", generations, line)
    if contradictions:
        places = "; ".join(contradictions[:3]) + ("; ..." if len(contradictions) > 3 else "")
        logger.warning("%s: gendiff contradicts the gen of %s, which is taken: %s", path, nodes.path, places)
    founders = zip(nodes.nodes, nodes.lines, strict=True)
    return path, [edges.get(node, Record(node, None, None, "unknown", None, 1, line)) for node, line in founders]


def _edge_generations(declared: int | None, between: int | None, place: str) -> int:
    """Generations on an AlphaBeta edge: `between`, the difference of the nodes' gen, else `declared`, its gendiff."""
    # METHOD: where the two contradict, gen is taken: published divergences of such lists follow the gen of the nodes.
    if between is not None and between < 1:
        raise UserError(f"{place}: gen rises by {between} from parent to child: expected at least 1")
    generations = declared if between is None else between
    if generations is None:
        raise UserError(f"{place}: no gendiff, and a node without gen: expected one of the two")
    return generations


def _parent(cell: str) -> str | None:
    return None if cell in MISSING_PARENT else cell


def _sex(cell: str, place: str) -> str:
    if cell.lower() not in SEXES:
        raise UserError(f"{place}: sex is {cell!r}: expected female (2), male (1) or unknown (0)")
    return SEXES[cell.lower()]


def _generations(cell: str, name: str, place: str) -> int:
    if cell in ("", ".", "NA"):
        return 1
    if not re.fullmatch(r"[0-9]{1,6}", cell) or int(cell) < 1:
        raise UserError(f"{place}: {name} is {cell!r}: expected a whole number >= 1")
    return int(cell)


# ---- from records to a pedigree


def _build(path: str, records: Sequence[Record]) -> Pedigree:
    """Check the records against each other and order parents before children."""
    if not records:
        raise UserError(f"{path}: the pedigree is empty: expected at least one individual")
    check_unique(path, "individual", [record.individual for record in records], [record.line for record in records])
    index = {record.individual: position for position, record in enumerate(records)}
    for record in records:
        for parent in (record.mother, record.father):
            if parent is not None and parent not in index:
                raise UserError(
                    f"{path} line {record.line}: unknown parent {parent!r} of {record.individual!r}: expected a "
                    f"line of its own{close_name(parent, list(index))}"
                )
    sex = {record.individual: record.sex for record in records}
    resolved = [_resolved_parents(record, sex, f"{path} line {record.line}") for record in records]
    mother = [-1 if record.mother is None else index[record.mother] for record in resolved]
    father = [-1 if record.father is None else index[record.father] for record in resolved]
    order = _parents_first(mother, father, resolved, path)
    position = {old: new for new, old in enumerate(order)} | {-1: -1}
    return Pedigree(
        individuals=tuple(records[old].individual for old in order),
        mother=np.array([position[mother[old]] for old in order], dtype=np.int32),
        father=np.array([position[father[old]] for old in order], dtype=np.int32),
        mode=tuple(resolved[old].mode or "sexual" for old in order),
        generations=np.array([resolved[old].generations for old in order], dtype=np.int32),
        sex=tuple(records[old].sex for old in order),
    )


def _resolved_parents(record: Record, sex: Mapping[str, str], place: str) -> Record:
    """The record with its mode decided and the one parent of a selfed or clonal individual as its mother."""
    one_plant = record.mother is not None and record.mother == record.father
    mode = record.mode or ("selfing" if one_plant else "sexual")
    if record.mother is None and record.father is None:
        if record.generations != 1:
            raise UserError(
                f"{place}: {record.individual!r} has generations {record.generations} and no parent: expected 1"
            )
        return Record(record.individual, None, None, record.sex, "sexual", 1, record.line)
    if mode != "sexual":
        return _uniparental(record, mode, sex, place)
    if one_plant:
        raise UserError(
            f"{place}: {record.mother!r} is mother and father of {record.individual!r}: expected mode selfing"
        )
    if record.generations != 1:
        raise UserError(
            f"{place}: {record.individual!r} has generations {record.generations} and mode sexual: expected 1, or mode "
            "selfing or clonal"
        )
    mother_sex, father_sex = sex.get(record.mother or "", "unknown"), sex.get(record.father or "", "unknown")
    parents = f"{record.mother!r} and {record.father!r}"
    if mother_sex == father_sex != "unknown":
        raise UserError(
            f"{place}: the parents of {record.individual!r}, {parents}, are both {mother_sex}: expected different sexes"
        )
    if mother_sex == "male":
        raise UserError(f"{place}: the mother of {record.individual!r}, {record.mother!r}, is male: expected female")
    if father_sex == "female":
        raise UserError(f"{place}: the father of {record.individual!r}, {record.father!r}, is female: expected male")
    return Record(record.individual, record.mother, record.father, record.sex, mode, 1, record.line)


def _uniparental(record: Record, mode: str, sex: Mapping[str, str], place: str) -> Record:
    parent = record.mother or record.father
    assert parent is not None
    if record.mother and record.father and record.mother != record.father:
        raise UserError(
            f"{place}: {record.individual!r} is {mode} and has two parents, {record.mother!r} and {record.father!r}: "
            "expected one"
        )
    if mode == "selfing" and sex[parent] != "unknown":
        raise UserError(
            f"{place}: the parent {parent!r} of the selfed {record.individual!r} is {sex[parent]}: expected sex unknown"
        )
    return Record(record.individual, parent, None, record.sex, mode, record.generations, record.line)


def _parents_first(mother: Sequence[int], father: Sequence[int], records: Sequence[Record], path: str) -> list[int]:
    """The order of the file, with parents moved before their children where they are not; a cycle is an error."""
    order: list[int] = []
    state = [0] * len(mother)  # 0 not seen, 1 on the way up to its ancestors, 2 placed
    for start in range(len(mother)):
        stack = [start]
        while stack:
            index = stack[-1]
            if state[index] == 2:
                stack.pop()
                continue
            state[index] = 1
            waiting = [parent for parent in (mother[index], father[index]) if parent >= 0 and state[parent] != 2]
            if not waiting:
                state[index] = 2
                order.append(stack.pop())
                continue
            if state[waiting[0]] == 1:
                _raise_cycle(waiting[0], mother, father, state, records, path)
            stack.append(waiting[0])
    return order


def _raise_cycle(
    start: int, mother: Sequence[int], father: Sequence[int], state: Sequence[int], records: Sequence[Record], path: str
) -> None:
    """Name the individuals of the cycle through `start`; those on it are the ones on the way up (state 1)."""
    cycle = [start]
    while True:
        index = cycle[-1]
        above = next(parent for parent in (mother[index], father[index]) if parent >= 0 and state[parent] == 1)
        if above == start:
            break
        cycle.append(above)
    line = records[start].line
    names = " -> ".join(repr(records[index].individual) for index in [*cycle, start])
    raise UserError(f"{path} line {line}: {records[start].individual!r} is its own ancestor: {names} (child -> parent)")
