"""Pedigree files: own table, PLINK, AlphaBeta lists; every mistake is one line naming file and line."""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from places import DATA

from epivi.base.errors import UserError
from epivi.cohort.kinship import covariance
from epivi.cohort.pedigree import Pedigree, check_samples, families, pedigree_hash, reduce
from epivi.cohort.pedigree_files import read_pedigree
from epivi.cohort.samples import alphabeta_samples, read_sample_sheet

PEDIGREES = DATA / "pedigrees"
needs_data = pytest.mark.skipif(not PEDIGREES.is_dir(), reason="the public test data is not beside the repository")

HEADER = "individual\tmother\tfather\tsex\tmode\tgenerations\n"


def _write(tmp_path: Path, text: str, name: str = "pedigree.tsv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def _message(tmp_path: Path, text: str, name: str = "pedigree.tsv") -> str:
    path = _write(tmp_path, text, name)
    with pytest.raises(UserError) as caught:
        read_pedigree(str(path))
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "FILE")


def _described(pedigree: Pedigree) -> dict[str, tuple[str, str, str, int, str]]:
    """individual -> (mother, father, mode, generations, sex), independent of order."""
    names = (*pedigree.individuals, "")  # index -1 is no parent
    return {
        name: (
            names[pedigree.mother[i]],
            names[pedigree.father[i]],
            pedigree.mode[i],
            int(pedigree.generations[i]),
            pedigree.sex[i],
        )
        for i, name in enumerate(pedigree.individuals)
    }


# ---- own table


def test_table_with_every_column(tmp_path: Path) -> None:
    text = (
        f"# comment\n{HEADER}ann\t\t\tF\t\t\nbob\t.\t0\tmale\t\t\ncat\tann\tbob\t2\tsexual\t1\n\n"
        "p1\tp0\t\t\tselfing\t3\np2\t\tp1\t\tclonal\t\np3\tp2\tp2\t\t\t\np0\t\t\t\tselfing\t\nx\tann\tNA\tunknown\t\t.\n"
    )
    pedigree = read_pedigree(str(_write(tmp_path, text)))
    assert pedigree.individuals == ("ann", "bob", "cat", "p0", "p1", "p2", "p3", "x")  # p0 moved before its child
    assert _described(pedigree) == {
        "ann": ("", "", "sexual", 1, "female"),
        "bob": ("", "", "sexual", 1, "male"),
        "cat": ("ann", "bob", "sexual", 1, "female"),
        "p0": ("", "", "sexual", 1, "unknown"),
        "p1": ("p0", "", "selfing", 3, "unknown"),
        "p2": ("p1", "", "clonal", 1, "unknown"),
        "p3": ("p2", "", "selfing", 1, "unknown"),
        "x": ("ann", "", "sexual", 1, "unknown"),
    }
    assert pedigree.mother.dtype == pedigree.father.dtype == pedigree.generations.dtype == np.int32
    assert [len(family) for family in families(pedigree)] == [4, 4]


def test_only_the_required_columns(tmp_path: Path) -> None:
    pedigree = read_pedigree(str(_write(tmp_path, "father\tindividual\tmother\n\ta\t\n\tb\t\nb\tc\ta")))
    assert _described(pedigree)["c"] == ("a", "b", "sexual", 1, "unknown")


def test_capitals_in_the_header_and_in_words(tmp_path: Path) -> None:
    text = "Individual\tMOTHER\tFather\tSex\tMode\tGenerations\np0\t\t\tUnknown\t\t\np1\tp0\t\tU\tSelfing\t3\n"
    assert _described(read_pedigree(str(_write(tmp_path, text))))["p1"] == ("p0", "", "selfing", 3, "unknown")
    twice = _message(tmp_path, "individual\tmother\tfather\tSex\tSEX\na\t\t\t\t\n")
    assert twice == "FILE line 1: column 'sex' is given twice, first on line 1"
    unknown = _message(tmp_path, "Individual\tMother\tFather\tGeneration\na\t\t\t\n")
    assert unknown == "FILE line 1: unknown column 'Generation'; did you mean 'generations'?"


@pytest.mark.parametrize("code", ["-9", ".", "0", "NA", "NaN", "nan", ""])
def test_every_way_to_leave_a_parent_open(tmp_path: Path, code: str) -> None:
    text = f"individual\tmother\tfather\nann\t{code}\t{code}\ncat\tann\t{code}\n"
    assert _described(read_pedigree(str(_write(tmp_path, text))))["cat"] == ("ann", "", "sexual", 1, "unknown")


def test_the_order_of_the_lines_does_not_matter(tmp_path: Path) -> None:
    rows = ["g\t\t\t\t\t", "h\t\t\t\t\t", "a\tg\th\t\t\t", "b\tg\th\t\t\t", "c\ta\tb\t\t\t", "d\tc\t\t\tselfing\t2"]
    reference = read_pedigree(str(_write(tmp_path, HEADER + "\n".join(rows))))
    assert reference.individuals == ("g", "h", "a", "b", "c", "d")
    for seed in range(20):
        shuffled = random.Random(seed).sample(rows, len(rows))
        pedigree = read_pedigree(str(_write(tmp_path, HEADER + "\n".join(shuffled))))
        assert _described(pedigree) == _described(reference)
        assert (np.maximum(pedigree.mother, pedigree.father) < np.arange(6)).all()
        order = [pedigree.individuals.index(name) for name in reference.individuals]
        np.testing.assert_allclose(
            covariance(pedigree, 0.8, 0.5)[np.ix_(order, order)], covariance(reference, 0.8, 0.5), atol=1e-15
        )


def test_a_long_line_needs_no_recursion(tmp_path: Path) -> None:
    rows = [f"i{k}\ti{k - 1}\t\t\tselfing\t" for k in range(5000, 0, -1)] + ["i0\t\t\t\t\t"]
    pedigree = read_pedigree(str(_write(tmp_path, HEADER + "\n".join(rows))))
    assert pedigree.individuals[:2] == ("i0", "i1")
    reduced = reduce(pedigree, ["i0", "i5000"])
    assert reduced.generations.tolist() == [1, 5000]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "FILE: the pedigree is empty: expected a header line with individual, mother, father"),
        ("individual\tmother\na\tb\n", "FILE line 1: no column 'father' among 'individual', 'mother'"),
        ("individual mother father\n", "FILE line 1: no column 'individual' among 'individual mother father'; columns"),
        (
            "individual\tmother\tfather\tgeneration\n",
            "FILE line 1: unknown column 'generation'; did you mean 'generations'?",
        ),
        (f"{HEADER}a\t\t\t\t\n", "FILE line 2: 5 columns, expected 6 as in the header"),
        (f"{HEADER}a\t\t\t\t\t\t\n", "FILE line 2: 7 columns, expected 6 as in the header"),
        (
            f"{HEADER}a\t\t\t\t\t\n#\nb\ta\t\t\t\t\na\t\t\t\t\t\n",
            "FILE line 5: individual 'a' is given twice, first on line 2",
        ),
        (
            f"{HEADER}anna\t\t\t\t\t\nb\tana\t\t\t\t\n",
            "FILE line 3: unknown parent 'ana' of 'b': expected a line of its own; did you mean 'anna'?",
        ),
        (f"{HEADER}\ta\t\t\t\t\n", "FILE line 2: individual is '': expected a name"),
        (
            f"{HEADER}a\tc\t\t\t\t\nb\ta\t\t\t\t\nc\tx\tb\t\t\t\nx\t\t\t\t\t\n",
            "FILE line 2: 'a' is its own ancestor: 'a' -> 'c' -> 'b' -> 'a' (child -> parent)",
        ),
        (f"{HEADER}a\ta\t\t\tselfing\t\n", "FILE line 2: 'a' is its own ancestor: 'a' -> 'a' (child -> parent)"),
        (
            f"{HEADER}a\t\t\tf\t\t\nb\t\t\tf\t\t\nc\ta\tb\t\t\t\n",
            "FILE line 4: the parents of 'c', 'a' and 'b', are both female: expected different sexes",
        ),
        (
            f"{HEADER}a\t\t\tm\t\t\nb\t\t\tm\t\t\nc\ta\tb\t\t\t\n",
            "FILE line 4: the parents of 'c', 'a' and 'b', are both male: expected different sexes",
        ),
        (f"{HEADER}a\t\t\tm\t\t\nc\ta\t\t\t\t\n", "FILE line 3: the mother of 'c', 'a', is male: expected female"),
        (f"{HEADER}a\t\t\tf\t\t\nc\t\ta\t\t\t\n", "FILE line 3: the father of 'c', 'a', is female: expected male"),
        (
            f"{HEADER}a\t\t\tf\t\t\nc\ta\ta\t\t\t\n",
            "FILE line 3: the parent 'a' of the selfed 'c' is female: expected sex unknown",
        ),
        (
            f"{HEADER}a\t\t\t\t\t\nc\ta\ta\t\tsexual\t\n",
            "FILE line 3: 'a' is mother and father of 'c': expected mode selfing",
        ),
        (
            f"{HEADER}a\t\t\t\t\t\nb\t\t\t\t\t\nc\ta\tb\t\tclonal\t\n",
            "FILE line 4: 'c' is clonal and has two parents, 'a' and 'b': expected one",
        ),
        (
            f"{HEADER}a\t\t\t\tselfed\t\n",
            "FILE line 2: mode is 'selfed': expected sexual, selfing, clonal or empty; did you mean 'selfing'?",
        ),
        (f"{HEADER}a\t\t\tx\t\t\n", "FILE line 2: sex is 'x': expected female (2), male (1) or unknown (0)"),
        (f"{HEADER}a\t\t\t\t\t0\n", "FILE line 2: generations is '0': expected a whole number >= 1"),
        (f"{HEADER}a\t\t\t\t\t1.5\n", "FILE line 2: generations is '1.5': expected a whole number >= 1"),
        (f"{HEADER}a\t\t\t\t\t2\n", "FILE line 2: 'a' has generations 2 and no parent: expected 1"),
        (
            f"{HEADER}a\t\t\t\t\t\nb\ta\t\t\t\t2\n",
            "FILE line 3: 'b' has generations 2 and mode sexual: expected 1, or mode selfing or clonal",
        ),
    ],
)
def test_one_clear_line(tmp_path: Path, text: str, expected: str) -> None:
    assert _message(tmp_path, text).startswith(expected)


def test_missing_file(tmp_path: Path) -> None:
    for name in ("none.tsv", "none.fam"):
        with pytest.raises(UserError, match=rf"{name}: the pedigree does not exist$"):
            read_pedigree(str(tmp_path / name))


# ---- PLINK


FAM = "F1 dad 0 0 1 -9\nF1 mum 0 0 2 -9\nF1\tkid  dad mum 1 2\nF2 plant 0 0 0 -9\nF2 self plant plant 0 -9\n"


def test_fam(tmp_path: Path) -> None:
    pedigree = read_pedigree(str(_write(tmp_path, FAM, "cohort.fam")))
    assert _described(pedigree) == {
        "dad": ("", "", "sexual", 1, "male"),
        "mum": ("", "", "sexual", 1, "female"),
        "kid": ("mum", "dad", "sexual", 1, "male"),
        "plant": ("", "", "sexual", 1, "unknown"),
        "self": ("plant", "", "selfing", 1, "unknown"),
    }


@pytest.mark.parametrize("name", ["cohort.fam", "cohort.ped"])
def test_parents_that_plink_codes_as_missing(tmp_path: Path, name: str) -> None:
    """-9 is PLINK's missing code of phenotypes, which many tools write for parents and sexes too."""
    text = "F1 dad -9 -9 1 -9\nF1 mum 0 -9 -9 -9\nF1 kid dad mum 1 2\nF1 half -9 mum -9 2\n"
    described = _described(read_pedigree(str(_write(tmp_path, text, name))))
    assert (described["dad"][:2], described["kid"][:2], described["half"][:2]) == (
        ("", ""),
        ("mum", "dad"),
        ("mum", ""),
    )
    assert _message(tmp_path, "F1 -9 0 0 1 -9\n", name) == "FILE line 1: individual id is '-9': expected a name"


def test_ped_ignores_genotypes_and_comments(tmp_path: Path) -> None:
    text = "#Family ID Father Mother Sex Phenotype\n" + "".join(f"{line} A A G T\n" for line in FAM.splitlines())
    ped, fam = _write(tmp_path, text, "cohort.PED"), _write(tmp_path, FAM, "cohort.fam")
    assert pedigree_hash(read_pedigree(str(ped))) == pedigree_hash(read_pedigree(str(fam)))


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("F a 0 0 1\n", "x.fam", "FILE line 1: 5 columns, expected 6"),
        ("F a 0 0 1 2 3\n", "x.fam", "FILE line 1: 7 columns, expected 6"),
        ("F a 0 0 1 2 A A\nF b 0 0 1 2 A\n", "x.ped", "FILE line 2: 7 columns, expected 8"),
        ("F a 0 0 1\n", "x.ped", "FILE line 1: 5 columns, expected 6"),
        ("F a 0 0 1 2\nG b 0 0 1 2\nG a 0 0 1 2\n", "x.fam", "FILE line 3: individual id 'a' of family 'G' is also in"),
        ("F a 0 0 1 2\nF a 0 0 1 2\n", "x.fam", "FILE line 2: individual 'a' is given twice, first on line 1"),
        ("F a d 0 1 2\n", "x.fam", "FILE line 1: unknown parent 'd' of 'a': expected a line of its own"),
        ("F a 0 0 1 2\nG b a 0 1 2\n", "x.fam", "FILE line 2: parent 'a' of 'b' is in family 'F', not 'G'"),
        ("F a 0 0 3 2\n", "x.fam", "FILE line 1: sex is '3': expected female (2), male (1) or unknown (0)"),
        ("F 0 0 0 1 2\n", "x.fam", "FILE line 1: individual id is '0': expected a name"),
        ("F a 0 0 2 2\nF b a 0 1 2\n", "x.fam", "FILE line 2: the father of 'b', 'a', is female: expected male"),
        ("# nobody\n", "x.ped", "FILE: the pedigree is empty: expected at least one individual"),
    ],
)
def test_plink_errors(tmp_path: Path, text: str, name: str, expected: str) -> None:
    assert _message(tmp_path, text, name).startswith(expected)


# ---- AlphaBeta


NODES = "filename,node,gen,meth\na.txt,0_0,0,Y\n-,1_1,3,N\nb.txt,2_1,4,Y\nc.txt,2_2,4,Y\n"


def _lists(tmp_path: Path, edges: str, nodes: str = NODES) -> dict[str, str]:
    return {
        "nodes": str(_write(tmp_path, nodes, "nodelist.fn")),
        "edges": str(_write(tmp_path, edges, "edgelist.fn")),
    }


@pytest.mark.parametrize(
    "edges",
    [
        "from to\n0_0 1_1\n1_1 2_1\n1_1 2_2",
        "from\tto\tgendiff\tgroup\n0_0\t1_1\t3\tA\n1_1 \t2_1\t1\tB\n1_1\t2_2\t1\tB\n",
        "from,to, gendiff\n0_0 , 1_1,3\n1_1,2_1,1\n1_1,2_2,NA \n",
        "From To GenDiff\n0_0 1_1 3\n1_1 2_1 1\n1_1 2_2 1",
    ],
)
def test_node_and_edge_lists(tmp_path: Path, edges: str) -> None:
    lists = _lists(tmp_path, edges)
    pedigree = read_pedigree(lists)
    assert _described(pedigree) == {
        "0_0": ("", "", "sexual", 1, "unknown"),
        "1_1": ("0_0", "", "selfing", 3, "unknown"),
        "2_1": ("1_1", "", "selfing", 1, "unknown"),
        "2_2": ("1_1", "", "selfing", 1, "unknown"),
    }
    assert pedigree_hash(read_pedigree(json.dumps(lists))) == pedigree_hash(pedigree)
    check_samples(alphabeta_samples(lists["nodes"]), pedigree)


def test_gen_wins_over_gendiff_and_the_contradiction_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pedigree = read_pedigree(_lists(tmp_path, "from to gendiff\n0_0 1_1 2\n1_1 2_1 1\n1_1 2_2 1\n"))
    assert pedigree.generations.tolist() == [1, 3, 1, 1]
    (warning,) = caplog.messages
    assert "gendiff contradicts the gen of" in warning
    assert "line 2, 0_0 to 1_1: 2 against 3" in warning
    assert "line 3" not in warning


def test_gendiff_serves_where_a_node_has_no_gen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edges = "from to gendiff\n0_0 1_1 2\n1_1 2_1 5\n1_1 2_2 1\n"
    with caplog.at_level(logging.WARNING):
        pedigree = read_pedigree(_lists(tmp_path, edges, NODES.replace("1_1,3", "1_1,NA")))
    assert pedigree.generations.tolist() == [1, 2, 5, 1]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ("from to\n0_0 1_1\n0_0 9_9\n", "EDGES line 3: node '9_9' is not in the node list NODES"),
        ("from to\n9_9 1_1\n", "EDGES line 2: node '9_9' is not in the node list NODES"),
        ("from to\n0_0 2_1\n1_1 2_1\n", "EDGES line 3: node '2_1' has a second parent, the first is on line 2"),
        ("from to\n2_1 1_1\n", "EDGES line 2: gen rises by -1 from parent to child: expected at least 1"),
        ("from to gendiff\n0_0 1_1 x\n", "EDGES line 2: gendiff is 'x': expected a whole number >= 1"),
        ("from to gendiff\n0_0 1_1 3\n1_1 0_0 1\n", "EDGES line 3: gen rises by -3 from parent to child"),
        ("from to\n0_0 1_1 1\n", "EDGES line 2: 3 columns, expected 2 as in the header"),
        ("0_0 1_1\n", "EDGES line 1: no column 'from' among '0_0', '1_1'"),
    ],
)
def test_alphabeta_errors(tmp_path: Path, edges: str, expected: str) -> None:
    lists = _lists(tmp_path, edges)
    with pytest.raises(UserError) as caught:
        read_pedigree(lists)
    assert str(caught.value).replace(lists["edges"], "EDGES").replace(lists["nodes"], "NODES").startswith(expected)


def test_capitals_in_the_header_of_a_node_list(tmp_path: Path) -> None:
    edges = "from to\n0_0 1_1\n1_1 2_1\n1_1 2_2"
    lists = _lists(tmp_path, edges, NODES.replace("filename,node,gen,meth", "Filename,Node,GEN,Meth"))
    assert _described(read_pedigree(lists)) == _described(read_pedigree(_lists(tmp_path, edges)))


def test_lists_and_files_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _lists(tmp_path, "from to\n0_0 1_1\n1_1 2_1\n1_1 2_2", NODES.replace("a.txt", "~/a.txt"))
    lists = {"nodes": "~/nodelist.fn", "edges": "~/edgelist.fn"}
    assert len(read_pedigree(lists).individuals) == len(read_pedigree(json.dumps(lists)).individuals) == 4
    assert alphabeta_samples("~/nodelist.fn").paths[0] == str(tmp_path / "a.txt")
    _write(tmp_path, FAM, "cohort.fam")
    assert len(read_pedigree("~/cohort.fam").individuals) == 5


def test_alphabeta_cycle_of_nodes_without_gen(tmp_path: Path) -> None:
    lists = _lists(tmp_path, "from to gendiff\n0_0 1_1 1\n1_1 0_0 1\n", NODES.replace("1_1,3", "1_1,NA"))
    with pytest.raises(UserError, match=r"edgelist.fn line 3: '0_0' is its own ancestor: '0_0' -> '1_1' -> '0_0'"):
        read_pedigree(lists)


def test_alphabeta_lists_must_be_two(tmp_path: Path) -> None:
    lists = _lists(tmp_path, "from to\n0_0 1_1\n")
    with pytest.raises(
        UserError, match=r"an AlphaBeta list alone is not a pedigree: expected \{nodes: PATH, edges: PATH\}"
    ):
        read_pedigree(lists["nodes"])
    with pytest.raises(UserError, match="keys 'nodes': expected nodes and edges"):
        read_pedigree({"nodes": lists["nodes"]})
    with pytest.raises(UserError, match="not valid JSON"):
        read_pedigree('{"nodes": ')
    no_gen = NODES.replace("1_1,3", "1_1,NA")
    with pytest.raises(
        UserError, match=r"edgelist.fn line 2: no gendiff, and a node without gen: expected one of the two"
    ):
        read_pedigree(_lists(tmp_path, "from to\n0_0 1_1\n", no_gen))


@needs_data
def test_col0_lines_reduce_to_the_measured_plants() -> None:
    lists = {name: str(PEDIGREES / "col0_ma" / f"{name[:-1]}list.fn") for name in ("nodes", "edges")}
    pedigree, sheet = read_pedigree(lists), alphabeta_samples(lists["nodes"])
    assert len(pedigree.individuals) == 23
    assert set(pedigree.mode) == {"sexual", "selfing"}
    assert len(families(pedigree)) == 1
    check_samples(sheet, pedigree)
    reduced = reduce(pedigree, sheet.samples)
    assert set(reduced.individuals) == set(sheet.samples)
    depth = {"0_0": 0}
    for i, name in enumerate(reduced.individuals[1:], start=1):
        depth[name] = depth[reduced.individuals[reduced.mother[i]]] + int(reduced.generations[i])
    assert depth == {name: int(name.split("_")[0]) for name in sheet.samples}
    # lines 2 and 8 meet in the founder: t^(sum of their generations)
    names = reduced.individuals
    matrix = covariance(reduced, 0.9, 0.9)
    assert matrix[names.index("11_2"), names.index("8_8")] == pytest.approx(0.9**19)
    assert matrix[names.index("11_2"), names.index("8_2")] == pytest.approx(0.9**3)


@needs_data
def test_ma1_1_has_the_generations_of_its_published_divergences(caplog: pytest.LogCaptureFixture) -> None:
    lists = {name: str(PEDIGREES / "ma1_1" / f"{name[:-1]}list.fn") for name in ("nodes", "edges")}
    with caplog.at_level(logging.WARNING):
        pedigree, sheet = read_pedigree(lists), alphabeta_samples(lists["nodes"])
    assert "0_0 to 2_26_r1: 1 against 2; line 3, 0_0 to 2_87_r1: 1 against 2" in caplog.text
    names = pedigree.individuals
    depth = [0] * len(names)
    ancestors: list[set[int]] = [{i} for i in range(len(names))]  # and self
    for i in range(1, len(names)):
        parent = int(pedigree.mother[i])
        depth[i] = depth[parent] + int(pedigree.generations[i])
        ancestors[i] |= ancestors[parent]
    found: Counter[tuple[int, int, int]] = Counter()
    for i, j in itertools.combinations(map(names.index, sheet.samples), 2):
        meeting = max(depth[k] for k in ancestors[i] & ancestors[j])
        found[(meeting, *sorted((depth[i], depth[j])))] += 1
    lines = (PEDIGREES / "ma1_1" / "divergence_pairs.csv").read_text().splitlines()[1:]
    published = [tuple(map(int, line.split(",")[:3])) for line in lines]
    assert found == Counter((meeting, *sorted(ends)) for meeting, *ends in published)


@needs_data
def test_ma1_1_reduces_to_the_same_covariance() -> None:
    lists = {name: str(PEDIGREES / "ma1_1" / f"{name[:-1]}list.fn") for name in ("nodes", "edges")}
    pedigree, sheet = read_pedigree(lists), alphabeta_samples(lists["nodes"])
    assert (len(pedigree.individuals), len(sheet.samples)) == (41, 27)
    described = _described(pedigree)
    assert described["30_29_r1"] == ("0_0", "", "selfing", 30, "unknown")
    assert described["31_99_r3"] == ("30_99_r1", "", "selfing", 1, "unknown")  # a blank before the tab
    reduced = reduce(pedigree, sheet.samples)
    assert len(reduced.individuals) < 41
    for tau in (0.99, 0.5):
        blocks = [
            covariance(each, tau, tau)[np.ix_(*[[each.individuals.index(name) for name in sheet.samples]] * 2)]
            for each in (pedigree, reduced)
        ]
        np.testing.assert_allclose(blocks[0], blocks[1], atol=1e-14)


# ---- samples against the pedigree


def test_a_sample_without_individual(tmp_path: Path) -> None:
    pedigree = read_pedigree(str(_write(tmp_path, "individual\tmother\tfather\nanna\t\t\n")))
    sheet = read_sample_sheet(_write(tmp_path, "sample\tindividual\tpath\na\tanna\tp\nb\tana\tp\n", "samples.tsv"))
    with pytest.raises(UserError) as caught:
        check_samples(sheet, pedigree)
    assert str(caught.value).replace(sheet.path, "FILE") == (
        "FILE line 3: individual 'ana' of sample 'b' is not in the pedigree; did you mean 'anna'?"
    )
