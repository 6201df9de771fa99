"""A folder of loci that is grown, shrunk and changed holds what a fresh assembly of the same counts holds."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import killed_assembly
import numpy as np
import pytest
from test_assemble import LOCI, write_counts

import epivi
from epivi.base.errors import UserError
from epivi.loci import index as locus_index
from epivi.loci import join, loci_file, panels
from epivi.loci.assemble import AssembleSettings, assemble
from epivi.loci.store import INDEX, MANIFEST, PANELS, LociStore

CONTIGS = ("chr1", "weird/name:1")
LENGTH = 300
KNOWN = ("known", "known", "known", "known")
# What the samples know of the strands of their rows, sample after sample; see `draw_rows`.
STRANDS = {
    "known": KNOWN,
    "unknown": ("unknown",),
    "C alone": ("C alone",),
    "few unknown": ("known", "few unknown", "known"),
    "some samples": ("known", "unknown", "known", "known"),
    "contradicting": ("contradicting",),
}


def draw_reference(rng):
    """Strand and context of every position that has one: runs of CpGs, also without a gap, and other cytosines."""
    letters = rng.choice(["CG", "CG", "C", "G", "A"], LENGTH)
    text = "".join(letters)[:LENGTH]
    return {pos: ("+" if base == "C" else "-", context_at(text, pos)) for pos, base in enumerate(text) if base in "CG"}


def context_at(text, pos):
    if text[pos : pos + 2] == "CG" or text[pos - 1 : pos + 1] == "CG":
        return "CG"
    return "CHG" if pos % 3 else "CHH"


def draw_rows(rng, references, knowledge, contexts):
    """One sample's rows. Its strands are those of the reference, unknown, or now and then wrong; contexts likewise."""
    rows = []
    for contig, reference in references.items():
        if rng.random() < 0.15:
            continue
        density = rng.choice([0.05, 0.3, 0.7])
        for pos, (strand, context) in reference.items():
            if context not in contexts or rng.random() > density or (knowledge == "C alone" and strand == "-"):
                continue
            if knowledge in ("unknown", "C alone") or (knowledge == "few unknown" and rng.random() < 0.02):
                strand = "."
            elif knowledge == "contradicting" and rng.random() < 0.02:
                strand, context = str(rng.choice(["+", "-"])), str(rng.choice(contexts))
            total = int(rng.choice([1, 3, 20, 65_535, 70_000]))
            rows.append((contig, pos + 2, strand, context, int(rng.integers(total + 1)), total))
    return rows


class Cohort:
    """Counts files of a growing cohort, a folder of loci that follows it, and fresh ones beside it."""

    def __init__(self, folder, rng, unit, merge, strands, contexts, min_covered):
        self.folder, self.rng, self.knowledge, self.contexts = folder, rng, STRANDS[strands], contexts
        self.references = {contig: draw_reference(rng) for contig in CONTIGS}
        if "bed" in unit:
            bed = folder / "regions.bed"
            starts = rng.integers(0, LENGTH, 25)
            lines = [f"{rng.choice(CONTIGS)}\t{s}\t{s + rng.integers(1, 90)}\n" for s in starts.tolist()]
            bed.write_text("".join(lines))
            unit = {"bed": str(bed)}
        self.unit, self.merge, self.min_covered = unit, merge, min_covered
        self.paths = []
        self.drawn = self.assembled = 0

    def write(self, number):
        path = self.folder / f"s{number}.parquet"
        rows = draw_rows(self.rng, self.references, self.knowledge[number % len(self.knowledge)], self.contexts)
        return write_counts(path, rows)

    def add(self):
        self.paths.append(self.write(self.drawn))
        self.drawn += 1

    def remove(self):
        del self.paths[int(self.rng.integers(len(self.paths)))]

    def shuffle(self):
        self.rng.shuffle(self.paths)

    def change(self):
        """Other counts of one sample, written under the same name."""
        self.write(int(self.rng.choice(self.paths).stem[1:]))

    def assemble(self, output):
        """Manifest without the panels, and all loci; or the message of the refusal."""
        needed = self.min_covered if self.min_covered < 1 else min(self.min_covered, len(self.paths))
        settings = AssembleSettings(self.unit, self.merge, needed)
        try:
            assemble(self.paths, output, settings, LOCI, threads=1, on_joined=lambda n_loci: None)
        except UserError as error:
            return str(error)
        return content(output)

    def check(self):
        """The folder that was grown equals a fresh one; the panels of the former."""
        self.assembled += 1
        fresh = self.assemble(self.folder / f"fresh{self.assembled}")
        grown = self.folder / "loci"
        assert self.assemble(grown) == fresh
        assert isinstance(fresh, str) or len(list((grown / PANELS).iterdir())) == len(LociStore.open(grown).panels)
        return panel_files(grown)


def content(output):
    """What the folder says of the cohort: equal for equal loci, however they lie in panels."""
    loci = LociStore.open(output)
    manifest = json.loads((output / MANIFEST).read_text())
    del manifest["panels"], manifest["files"]
    blocks = [loci.block(contig, 0, loci.n_loci_of(contig)) for contig in loci.contigs]
    return manifest, [[block.contig, *((array.dtype, array.tolist()) for array in block[2:])] for block in blocks]


def panel_files(output):
    """{panel: its files, with all that tells whether they were written again}."""
    files = {}
    for path in sorted((output / PANELS).glob("*/*")):
        status = path.stat()
        files.setdefault(path.parent.name, []).append((path.name, status.st_ino, status.st_mtime_ns, status.st_size))
    return files


def n_samples(output):
    return sorted(len(panel.places) for panel in LociStore.open(output).panels)


@pytest.fixture
def small_windows(monkeypatch):
    """Several windows a contig, when counts are joined and when the index is made."""
    monkeypatch.setattr(join, "WINDOW_VALUES", 1)
    monkeypatch.setattr(join, "MIN_WINDOW_BP", 90)
    monkeypatch.setattr(locus_index, "WINDOW_VALUES", 1)
    monkeypatch.setattr(locus_index, "LEAST_WINDOW", 20)


UNITS = {"cpg": "cpg", "tile": {"tile": 37}, "bed": {"bed": ""}}
CONTEXTS = {"CG": ("CG",), "all": ("CG", "CHG", "CHH")}


GROWN = [
    ("cpg", True, "CG"),
    ("cpg", True, "all"),
    ("cpg", False, "all"),
    ("tile", True, "all"),
    ("tile", False, "CG"),
    ("bed", True, "all"),
]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(
    ("unit", "merge", "contexts", "strands"),
    [
        # Every second pair, as on a chessboard: each unit with half of the strands, and the other way round.
        pytest.param(*GROWN[row], strands, marks=pytest.mark.slow if (row + column) % 2 else ())
        for row in range(len(GROWN))
        for column, strands in enumerate(STRANDS)
    ],
)
def test_whatever_becomes_of_the_cohort_the_loci_are_those_of_a_fresh_assembly(
    tmp_path, unit, merge, strands, contexts
):
    rng = np.random.default_rng([list(STRANDS).index(strands), list(UNITS).index(unit), merge, len(contexts)])
    min_covered = float(rng.choice([0.3, 0.6])) if rng.random() < 0.5 else int(rng.integers(1, 4))
    cohort = Cohort(tmp_path, rng, UNITS[unit], merge, strands, CONTEXTS[contexts], min_covered)
    cohort.add()
    cohort.add()
    for step in ["add", "add", "shuffle", "change", "add", "remove", "add", "remove", "remove", "change"]:
        getattr(cohort, step)()
        cohort.check()


@pytest.mark.parametrize("windows", ["one", "many"])
@pytest.mark.parametrize("unit", list(UNITS))
def test_contigs_that_share_files_in_one_panel_and_not_in_another(tmp_path, monkeypatch, request, unit, windows):
    """As where samples differ in depth: large in one panel, small in the next, missing in a third."""
    if windows == "many":
        request.getfixturevalue("small_windows")
    monkeypatch.setattr(loci_file, "LARGE_CONTIG_LOCI", 60)
    monkeypatch.setattr(sys.modules[__name__], "CONTIGS", (*CONTIGS, *(f"s{number}" for number in range(9))))
    cohort = Cohort(tmp_path, np.random.default_rng(13), UNITS[unit], True, "known", CONTEXTS["all"], 0.4)
    cohort.add()
    cohort.add()
    for step in ["add", "add", "add", "remove"]:
        getattr(cohort, step)()
        cohort.check()
    layouts = [sorted(name for name, *_ in files) for files in panel_files(tmp_path / "loci").values()]
    assert len(layouts) >= 3
    assert len({tuple(names) for names in layouts}) == len(layouts)
    # Read together, in ranges that end anywhere and with contigs left out.
    loci = LociStore.open(tmp_path / "loci")
    everything = [(contig, 0, loci.n_loci_of(contig)) for contig in loci.contigs]
    inner = [(contig, n // 3, n - 1) for contig, _, n in everything[::2]]
    for ranges in (everything, everything[1::2], inner):
        alone = [loci.block(*each) for each in ranges]
        for place, array in enumerate(loci.rows_of(ranges)):
            np.testing.assert_array_equal(array, np.concatenate([block[2 + place] for block in alone]))
    for place, array in enumerate(loci.span(0, loci.n_loci)[2:]):
        np.testing.assert_array_equal(array, np.concatenate([loci.block(*each)[2 + place] for each in everything]))


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(("unit", "strands"), [*((unit, "known") for unit in UNITS), ("cpg", "C alone")])
def test_panels_of_unchanged_samples_stay_as_they_are(tmp_path, unit, strands):
    """Where strands are known, or no base could be another's partner, a sample more is a panel more.

    One that is gone, or elsewhere in the order, costs an index.
    """
    cohort = Cohort(tmp_path, np.random.default_rng(5), UNITS[unit], True, strands, CONTEXTS["all"], 0.4)
    for _ in range(4):
        cohort.add()
    before = cohort.check()
    assert n_samples(tmp_path / "loci") == [4]
    for number in range(1, 4):
        cohort.add()
        after = cohort.check()
        assert before.items() <= after.items()
        assert n_samples(tmp_path / "loci") == [1] * number + [4]
        before = after
    for step in (cohort.shuffle, cohort.paths.reverse):
        step()
        assert cohort.check() == before
    cohort.paths = [path for path in cohort.paths if path.stem not in ("s1", "s5")]
    after = cohort.check()
    assert after.items() <= before.items()
    assert n_samples(tmp_path / "loci") == [1, 1, 4]
    cohort.write(0)
    changed = cohort.check()
    assert after.items() <= changed.items()
    assert n_samples(tmp_path / "loci") == [1, 1, 1, 4]


@pytest.mark.parametrize("edit", ["tile", "merge", "bed", "code", "min_covered"])
def test_settings_that_shape_loci_leave_no_panel(tmp_path, monkeypatch, edit):
    unit = UNITS["bed" if edit == "bed" else "tile"]
    cohort = Cohort(tmp_path, np.random.default_rng(6), unit, True, "known", CONTEXTS["CG"], 1)
    cohort.add()
    cohort.add()
    before = cohort.check()
    if edit == "tile":
        cohort.unit = {"tile": 50}
    elif edit == "merge":
        cohort.merge = False
    elif edit == "bed":
        with open(cohort.unit["bed"], "a") as file:
            file.write("chr1\t3\t333\n")
    elif edit == "code":
        copy = tmp_path / "join.py"
        copy.write_text("# another join")
        monkeypatch.setattr(join, "__file__", str(copy))
    else:
        cohort.min_covered = 2
    assert (cohort.check() == before) == (edit == "min_covered")


def test_many_panels_and_little_used_ones_are_joined_anew(tmp_path, caplog):
    caplog.set_level("INFO")
    cohort = Cohort(tmp_path, np.random.default_rng(7), "cpg", True, "known", CONTEXTS["CG"], 1)
    for _ in range(5):
        cohort.add()
    cohort.check()
    for number in range(1, panels.MOST_PANELS):
        cohort.add()
        cohort.check()
        assert len(n_samples(tmp_path / "loci")) == number + 1
    assert "joined anew" not in caplog.text
    cohort.add()
    cohort.check()
    assert n_samples(tmp_path / "loci") == [5 + panels.MOST_PANELS]
    assert f"all samples are joined anew: there would be more than {panels.MOST_PANELS} panels" in caplog.text
    del cohort.paths[:7]
    cohort.check()
    assert n_samples(tmp_path / "loci") == [6]
    assert "of 13 samples joined before only 6 are used" in caplog.text


def test_sample_that_two_panels_hold_counts_once(tmp_path):
    """As where a run that joined all anew was killed before it removed what was there."""
    cohort = Cohort(tmp_path, np.random.default_rng(9), "cpg", True, "known", CONTEXTS["CG"], 4)
    for _ in range(7):
        cohort.add()
    everyone = cohort.paths
    cohort.paths = everyone[:4]
    (left,) = cohort.check()
    shutil.copytree(tmp_path / "loci" / PANELS / left, tmp_path / "left")
    cohort.paths = [everyone[0], *everyone[4:]]
    cohort.check()
    assert n_samples(tmp_path / "loci") == [4]
    (tmp_path / "left").rename(tmp_path / "loci" / PANELS / left)
    cohort.paths = everyone
    cohort.check()
    assert n_samples(tmp_path / "loci") == [4, 4]


@pytest.mark.parametrize("damage", ["cut short", "lost", "no record", "empty record", "half a folder", "old format"])
def test_what_is_no_whole_panel_is_made_anew(tmp_path, damage):
    cohort = Cohort(tmp_path, np.random.default_rng(10), "cpg", True, "known", CONTEXTS["CG"], 1)
    for _ in range(3):
        cohort.add()
    cohort.check()
    (folder,) = (tmp_path / "loci" / PANELS).iterdir()
    file = folder / "+0000.arrow"
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "lost":
        file.unlink()
    elif damage == "no record":
        (folder / panels.RECORD).unlink()
    elif damage == "empty record":
        (folder / panels.RECORD).write_text("{}")
    elif damage == "half a folder":
        shutil.copytree(folder, folder.with_name(f".{folder.name}.1.tmp"))
        (folder / panels.RECORD).rename(folder.with_name("panel.json"))
    else:
        file.rename(folder / "chr1.arrow")
        record = json.loads((folder / panels.RECORD).read_text())
        del record["files"]
        (folder / panels.RECORD).write_text(json.dumps(record))
    cohort.check()
    assert sorted(path.name for path in (tmp_path / "loci").iterdir()) == [INDEX, MANIFEST, PANELS]


def test_open_strands_are_looked_at_together(tmp_path, caplog):
    """A pair that a sample cannot tell is settled by another, whenever that one comes; the log says so."""
    caplog.set_level("INFO")
    settings = AssembleSettings("cpg", True, 1)
    first = write_counts(tmp_path / "a.parquet", [("c", 11, ".", "CG", 1, 2)])
    second = write_counts(tmp_path / "b.parquet", [("c", 10, "+", "CG", 1, 2)])
    for counts in ([first], [first, second]):
        assemble(counts, tmp_path / "loci", settings, LOCI, threads=1, on_joined=lambda n_loci: None)
    store = LociStore.open(tmp_path / "loci")
    assert store.block("c", 0, 1).pos0.tolist() == [10]
    assert store.block("c", 0, 1).total.tolist() == [[2, 2]]
    assert n_samples(tmp_path / "loci") == [2]
    assert "joined anew: some strands are known only from other samples" in caplog.text


def strands_grown(folder, merge, first, second):
    """Position -> strands of its loci that are not merged, once the second sample has come to the first."""
    samples = (write_counts(folder / f"{name}.parquet", rows) for name, rows in (("a", first), ("b", second)))
    counts = []
    for path in samples:
        counts.append(path)
        settings = AssembleSettings("cpg", merge, 1)
        assemble(counts, folder / "loci", settings, LOCI, threads=1, on_joined=lambda n_loci: None)
    store = LociStore.open(folder / "loci")
    block = store.block("c", 0, store.n_loci)
    is_own = (block.context != "CG") | (not merge)
    strands = {}
    for pos0, strand in zip(block.pos0[is_own].tolist(), block.strand[is_own].tolist(), strict=True):
        strands.setdefault(pos0, set()).add(strand)
    return strands


@pytest.mark.parametrize(
    ("known", "other", "expected"),
    [
        (("+", "CHG"), ("-", "CHH"), "+"),
        (("+", "CHG"), (".", "CHH"), "+"),
        (("+", "CG"), (".", "CHG"), "+"),
        (("+", "CG"), ("-", "CHG"), "+"),
        (("-", "CG"), (".", "CHG"), "-"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_sample_that_contradicts_another_is_joined_with_it(tmp_path, known, other, expected, is_first):
    """Reads of variants, whose contexts and strands are not those of the reference; + goes before - before unknown."""
    rows = [[("c", 10, *known, 1, 2)], [("c", 10, *other, 1, 2)]]
    assert strands_grown(tmp_path, True, *(rows if is_first else rows[::-1]))[10] == {expected}
    assert n_samples(tmp_path / "loci") == [2]


def test_strand_that_only_a_sample_now_gone_knew(tmp_path):
    paths = [write_counts(tmp_path / f"{strand}.parquet", [("c", 10, strand, "CHG", 1, 2)]) for strand in "+."]
    strands = []
    for counts in (paths, paths[1:]):
        settings = AssembleSettings("cpg", True, 1)
        assemble(counts, tmp_path / "loci", settings, LOCI, threads=1, on_joined=lambda n_loci: None)
        strands += LociStore.open(tmp_path / "loci").block("c", 0, 1).strand.tolist()
    assert strands == ["+", "."]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("pos", range(25, 65, 2))  # as many as a window has rows
def test_one_contradiction_is_seen_wherever_windows_end(tmp_path, pos):
    first = [("c", place, "+", "CHG", 1, 2) for place in range(1, 80, 2)]
    assert set.union(*strands_grown(tmp_path, False, first, [("c", pos, "-", "CG", 1, 2)]).values()) == {"+"}
    first = [("c", place, ".", "CHG", 1, 2) for place in range(1, 80, 2)]
    pair = [("c", pos - 1, "+", "CG", 1, 2), ("c", pos, "-", "CG", 1, 2)]
    strands = strands_grown(tmp_path, True, first, pair)
    assert strands.pop(pos) == {"-"}
    assert set.union(*strands.values()) == {"."}


@pytest.mark.parametrize("change", ["add", pytest.param("change", marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_leaves_the_old_or_nothing_that_opens(tmp_path, change):
    """Before each renaming and removal in turn; started again, it ends in the same loci."""
    cohort = Cohort(tmp_path, np.random.default_rng(8), "cpg", True, "known", CONTEXTS["CG"], 1)
    del cohort.references[CONTIGS[0]]
    for _ in range(3):
        cohort.add()
    cohort.check()
    old = content(tmp_path / "loci")
    if change == "change":
        # Two of three other samples: what is there is joined anew, and removed at the end.
        cohort.write(0)
        cohort.write(1)
    else:
        cohort.add()
    new = cohort.assemble(tmp_path / "whole")
    copies = tmp_path / "copies"
    program = [sys.executable, killed_assembly.__file__, tmp_path / "loci", copies, *cohort.paths]
    subprocess.run(
        [*map(str, program)], check=True, env={**os.environ, "PYTHONPATH": str(Path(epivi.__file__).parents[1])}
    )
    seen = []
    for number in range(1, len(list(copies.iterdir())) + 1):
        folder = copies / str(number)
        try:
            LociStore.open(folder)
        except UserError:
            seen.append("nothing")
        else:
            seen.append({str(old): "old", str(new): "new"}[str(content(folder))])
        before = panel_files(folder)
        assert cohort.assemble(folder) == new
        after = panel_files(folder)
        assert {name: before[name] for name in before if name in after}.items() <= after.items()
        assert sorted(path.name for path in folder.iterdir()) == [INDEX, MANIFEST, PANELS]
        assert len(after) == len(LociStore.open(folder).panels)
    moments = [moment for moment, _ in itertools.groupby(seen)]
    assert moments == ["old", "nothing", "new"]
    assert min(map(seen.count, moments)) >= 2, seen
