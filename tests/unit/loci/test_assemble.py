"""Assembly of loci against a slow join with dictionaries, and its refusals."""

from __future__ import annotations

import collections
import gzip
import json
import math

import numpy as np
import pyarrow as pa
import pytest

from epivi.base.errors import UserError
from epivi.cli import main
from epivi.ingest.columns import INGEST_TABLES
from epivi.loci import index as locus_index
from epivi.loci import join, loci_file
from epivi.loci.assemble import AssembleSettings, assemble, samples_needed
from epivi.loci.bed import read_bed
from epivi.loci.store import INDEX, PANELS, LociStore
from epivi.tables.parquet import Provenance, TableWriter

LOCI = Provenance("loci", 3, "config", "")
COUNTS = Provenance("counts", 3, "config", "")


def write_counts(path, rows, sample=None):
    """Rows of (contig, pos, strand, context, meth, total), sorted here; one row group a contig."""
    with TableWriter(
        path, INGEST_TABLES["counts"], COUNTS, metadata={"epivi.sample": sample} if sample else None
    ) as writer:
        for contig in sorted({row[0] for row in rows}):
            part = sorted(row for row in rows if row[0] == contig)
            writer.write(
                pa.table(dict(zip([c.name for c in INGEST_TABLES["counts"]], zip(*part, strict=True), strict=True)))
            )
            writer.flush()
    return path


def run(tmp_path, samples, settings, threads=1):
    """Assemble lists of rows, one a sample; return the store."""
    paths = [write_counts(tmp_path / f"s{number}.parquet", rows) for number, rows in enumerate(samples)]
    assemble(paths, tmp_path / "loci", settings, LOCI, threads=threads, on_joined=lambda n_loci: None)
    return LociStore.open(tmp_path / "loci")


def loci_of(store):
    """{(contig, pos, end, strand, context): [(meth, total) of each sample]} in the order of the store."""
    result = {}
    for block in store.blocks(777):
        counts = np.stack([block.meth, block.total], axis=-1).tolist()
        keys = zip(block.pos0.tolist(), block.end0.tolist(), block.strand.tolist(), block.context.tolist(), strict=True)
        for key, row in zip(keys, counts, strict=True):
            assert (block.contig, *key) not in result
            result[(block.contig, *key)] = [tuple(pair) for pair in row]
    return result


def contents(folder):
    """{path within the folder: content of the file}."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- the slow join


def slow_cpg_starts(strands):
    """{observed position: C of its CpG} from {position: strands seen}, one position at a time."""
    plus = {p for p, seen in strands.items() if "+" in seen} | {p - 1 for p, seen in strands.items() if "-" in seen}
    start = {}
    for p in sorted(strands):
        if p in plus:
            start[p] = p
        elif p - 1 in plus or start.get(p - 1) == p - 1:
            start[p] = p - 1
        else:
            start[p] = p
    return start


def slow_join(samples, unit, merge, needed, intervals=()):
    strands = collections.defaultdict(set)
    for rows in samples:
        for contig, pos, strand, _, _, _ in rows:
            strands[contig, pos].add(strand)
    cg = collections.defaultdict(lambda: collections.defaultdict(set))
    for rows in samples:
        for contig, pos, strand, context, _, _ in rows:
            if context == "CG":
                cg[contig][pos].add(strand)
    starts = {contig: slow_cpg_starts(seen) for contig, seen in cg.items()}
    sums = collections.defaultdict(lambda: [[0, 0] for _ in samples])
    for number, rows in enumerate(samples):
        for contig, pos, strand, context, meth, total in rows:
            for key in slow_loci(contig, pos, strand, context, strands, starts, unit, merge, intervals):
                sums[key][number][0] += meth
                sums[key][number][1] += total
    kept = {key: row for key, row in sums.items() if sum(total > 0 for _, total in row) >= needed}
    return {key: [(m, t) if t <= 65535 else (round(m * 65535 / t), 65535) for m, t in row] for key, row in kept.items()}


def slow_loci(contig, pos, strand, context, strands, starts, unit, merge, intervals):
    if merge and context == "CG":
        # Before its first base a contig has none.
        pos = max(pos - 1 if strand == "-" else pos if strand == "+" else starts[contig][pos], 0)
        extent, strand = 2, "."
    else:
        seen = strands[contig, pos]
        extent, strand = 1, "+" if "+" in seen else "-" if "-" in seen else "."
    if unit == "cpg":
        return [(contig, pos, pos + extent, strand, context)]
    if "tile" in unit:
        width = unit["tile"]
        return [(contig, pos // width * width, pos // width * width + width, ".", context)]
    return [(c, start, end, ".", context) for c, start, end in set(intervals) if c == contig and start <= pos < end]


def random_samples(seed, *, n_samples=4, length=2000, contexts=("CG",), strands=(".", "."), density=0.3):
    """Rows with many adjacent positions; each sample draws its strands from one of `strands`."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(n_samples):
        known = strands[number % len(strands)]
        rows = []
        for contig in ("chr1", "chr2", "chr10", "weird/name:1"):
            # A stretch without a single gap crosses several windows' ends.
            positions = np.flatnonzero((rng.random(length) < density) | (np.arange(length) // 40 % 10 == 3)) + 5
            for pos in positions.tolist():
                context = contexts[pos % len(contexts)]
                total = int(rng.choice([1, 3, 20, 40_000, 70_000]))
                rows.append((contig, pos, str(rng.choice(list(known))), context, int(rng.integers(total + 1)), total))
        samples.append(rows)
    return samples


@pytest.fixture
def small_windows(monkeypatch):
    """About a dozen windows a contig, so that their seams are tested."""
    monkeypatch.setattr(join, "WINDOW_VALUES", 1)
    monkeypatch.setattr(join, "MIN_WINDOW_BP", 170)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(
    ("contexts", "strands", "merge"),
    [
        (("CG",), (".",), True),
        (("CG",), (".", "+"), True),
        (("CG",), (".", "+-", ".+-"), True),
        (("CG", "CHG", "CHH"), ("+-", "."), True),
        (("CG", "CHH"), ("+-", "."), False),
        (("CG",), (".",), False),
    ],
)
@pytest.mark.parametrize("unit", ["cpg", {"tile": 37}, {"tile": 450}])
def test_agrees_with_the_slow_join(tmp_path, contexts, strands, merge, unit):
    samples = random_samples(1, contexts=contexts, strands=strands)
    store = run(tmp_path, samples, AssembleSettings(unit, merge, 3))
    expected = slow_join(samples, unit, merge, 3)
    assert len(expected) >= 20
    assert loci_of(store) == expected
    assert store.contigs == ("chr1", "chr2", "chr10", "weird/name:1")
    for contig in store.contigs:
        assert np.all(np.diff(store.block(contig, 0, store.n_loci_of(contig)).pos0) >= 0)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("threads", [1, 2])
def test_intervals_overlap_nest_and_repeat(tmp_path, threads):
    rng = np.random.default_rng(2)
    samples = random_samples(2, contexts=("CG", "CHG"), strands=("+-", "."), n_samples=3)
    starts = rng.integers(0, 2000, 60)
    intervals = [("chr2", int(start), int(start + rng.integers(1, 200))) for start in starts]
    intervals += [("chr2", 0, 2100), ("chr2", 100, 1500), intervals[0], ("chr10", 20, 30), ("absent", 1, 2)]
    bed = tmp_path / "regions.bed"
    bed.write_text("track name=x\n# note\n\n" + "".join(f"{c}\t{s}\t{e}\tname{s}\n" for c, s, e in intervals))
    unit = {"bed": str(bed)}
    store = run(tmp_path, samples, AssembleSettings(unit, True, 2), threads)
    assert loci_of(store) == slow_join(samples, unit, True, 2, intervals)
    assert store.contigs == ("chr2", "chr10")
    pos0 = store.block("chr2", 0, store.n_loci_of("chr2")).pos0
    assert np.all(np.diff(pos0) >= 0)


# ---- contigs that are joined together


def scaffolds(seed, contexts, strands):
    """Rows of three samples on 40 short contigs: of one base, full to both ends, or none; a third in one sample."""
    rng = np.random.default_rng(seed)
    samples = [[], [], []]
    for number in range(40):
        length = int(rng.choice([1, 2, 30, 90]))
        for sample, rows in enumerate(samples):
            if number % 3 == 0 and sample != number // 3 % 3:
                continue
            for pos in np.flatnonzero(rng.random(length) < rng.choice([0.0, 0.3, 1.0])).tolist():
                known = strands[sample % len(strands)]
                total = int(rng.choice([1, 20, 70_000]))
                row = (str(rng.choice(list(known))), contexts[pos % len(contexts)], int(rng.integers(total + 1)), total)
                rows.append((f"s{number}", pos, *row))
    return samples


def scattered_intervals(seed):
    """Intervals of most of the contigs, also beyond their ends, and of one that there is not; sorted by no one."""
    rng = np.random.default_rng(seed)
    contigs = [f"s{number}" for number in range(41) if number % 4]
    drawn = [(str(rng.choice(contigs)), int(rng.integers(0, 90)), int(rng.integers(1, 60))) for _ in range(120)]
    return [(contig, start, start + length) for contig, start, length in drawn] + [("s1", 0, 2**31 - 1)]


@pytest.mark.parametrize("windows", ["one", "many"])
@pytest.mark.parametrize(
    ("contexts", "strands", "merge"),
    [
        (("CG",), (".",), True),
        (("CG",), ("+-", ".", ".+-"), True),
        (("CG", "CHG"), ("+-", "."), True),
        (("CG", "CHH"), ("+-", "."), False),
    ],
)
@pytest.mark.parametrize("unit", ["cpg", {"tile": 7}, {"tile": 450}, "bed"])
def test_small_contigs_joined_together_are_what_each_alone_is(
    tmp_path, monkeypatch, unit, contexts, strands, merge, windows
):
    samples, intervals = scaffolds(12, contexts, strands), scattered_intervals(12)
    if windows == "many":
        monkeypatch.setattr(join, "WINDOW_VALUES", 300)
        monkeypatch.setattr(join, "MIN_WINDOW_BP", 11)
        monkeypatch.setattr(locus_index, "WINDOW_VALUES", 1)
    if unit == "bed":
        unit = {"bed": str(tmp_path / "regions.bed")}
        (tmp_path / "regions.bed").write_text("".join(f"{c}\t{start}\t{end}\n" for c, start, end in intervals))
    found, tallies = {}, {}
    for name, large in (("alone", 1), ("together", 1 << 15)):
        monkeypatch.setattr(loci_file, "LARGE_CONTIG_LOCI", large)
        (tmp_path / name).mkdir()
        paths = [write_counts(tmp_path / name / f"{number}.parquet", rows) for number, rows in enumerate(samples)]
        settings, folder = AssembleSettings(unit, merge, 2), tmp_path / name / "loci"
        tallies[name] = assemble(paths, folder, settings, LOCI, threads=1, on_joined=lambda n_loci: None)
        found[name] = loci_of(LociStore.open(folder))
    assert found["together"] == found["alone"] == slow_join(samples, unit, merge, 2, intervals)
    assert tallies["together"] == tallies["alone"]
    assert len({key[0] for key in found["alone"]}) >= 5
    files = {name: len(contents(tmp_path / name / "loci")) for name in found}
    assert files["together"] == 4
    assert files["alone"] > 10


@pytest.mark.parametrize("last", ["+", "."])
@pytest.mark.parametrize("first", ["-", "."])
def test_the_last_base_of_a_contig_and_the_first_of_the_next_are_no_pair(tmp_path, last, first):
    rows = [("a", 60, last, "CG", 1, 2), ("b", 0, first, "CG", 3, 5)]
    expected = {("a", 60, 62, ".", "CG"): [(1, 2)], ("b", 0, 2, ".", "CG"): [(3, 5)]}
    assert loci_of(run(tmp_path, [rows], AssembleSettings("cpg", True, 1))) == expected


def test_reads_of_the_minus_strand_at_the_first_base_of_a_contig(tmp_path):
    """Their CpG would begin before the contig; they were added to the next locus, or ended in a traceback."""
    rows = [("a", 0, "-", "CG", 1, 2), ("a", 7, "+", "CG", 3, 5), ("a", 17, "+", "CG", 3, 5)]
    for number, part in enumerate((rows, rows[:1])):
        (tmp_path / str(number)).mkdir()
        found = loci_of(run(tmp_path / str(number), [part], AssembleSettings("cpg", True, 1)))
        assert found == {("a", pos, pos + 2, ".", "CG"): [(meth, total)] for _, pos, _, _, meth, total in part}


def test_one_known_strand_settles_where_the_cpg_is(tmp_path):
    unknown = [("c", pos, ".", "CG", 1, 2) for pos in (10, 11, 12, 13)]
    settings = AssembleSettings("cpg", True, 1)
    alone = loci_of(run(tmp_path, [unknown], settings))
    assert [key[1] for key in alone] == [10, 12]
    known = [("c", 11, "+", "CG", 1, 2)]
    # 12 is the G of 11; 10 and 13 have lost their partners.
    assert [key[1] for key in loci_of(run(tmp_path, [unknown, known], settings))] == [10, 11, 13]


def test_the_two_strands_meet_across_samples_that_saw_only_one(tmp_path):
    forward, reverse = [("c", 7, ".", "CG", 1, 4)], [("c", 8, ".", "CG", 3, 5)]
    store = run(tmp_path, [forward, reverse], AssembleSettings("cpg", True, 2))
    assert loci_of(store) == {("c", 7, 9, ".", "CG"): [(1, 4), (3, 5)]}


def test_threads_give_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(loci_file, "LARGE_CONTIG_LOCI", 1000)  # more than a contig has; two share a file
    samples = random_samples(4, n_samples=2, length=2000)
    for name, threads in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, samples, AssembleSettings("cpg", True, 0.5), threads)
    one, two = (contents(tmp_path / name / "loci") for name in ("one", "two"))
    assert len(one) == 6  # the manifest; panel and index of four contigs, two a file, and the panel's record
    assert one == two


def test_large_contigs_have_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(loci_file, "LARGE_CONTIG_LOCI", 100)
    samples = [[*rows, ("chr1", 7000, "+", "CG", 1, 2), ("small", 1, "+", "CG", 1, 2)] for rows in random_samples(4)]
    store = run(tmp_path, samples, AssembleSettings("cpg", True, 1))
    large = {"chr1.arrow", "chr2.arrow", "chr10.arrow", "weird%2Fname%3A1.arrow"}
    for folder in (tmp_path / "loci" / INDEX, *(tmp_path / "loci" / PANELS).iterdir()):
        assert {path.name for path in folder.glob("*.arrow")} == {*large, "+0000.arrow"}
    assert loci_of(store) == slow_join(samples, "cpg", True, 1)


def test_hundreds_of_contigs_are_few_files(tmp_path):
    """One file a contig in the panel and one in the index were six hundred."""
    samples = [
        [(f"s{number}", place, "+", "CG", number % 3, 3) for number in range(300) for place in (sample, 9)]
        for sample in range(2)
    ]
    store = run(tmp_path, samples, AssembleSettings("cpg", True, 1))
    assert len(store.contigs) == 300
    assert len(contents(tmp_path / "loci")) == 4  # manifest and record, panel and index
    assert loci_of(store) == slow_join(samples, "cpg", True, 1)


def test_manifest_counts_add_up(tmp_path):
    samples = random_samples(5, n_samples=4)
    store = run(tmp_path, samples, AssembleSettings("cpg", True, 0.9))
    manifest = json.loads((tmp_path / "loci" / "loci.json").read_text())
    everything = slow_join(samples, "cpg", True, 1)
    assert manifest["n_seen"] == len(everything)
    assert manifest["n_loci"] == store.n_loci == len(slow_join(samples, "cpg", True, 4))
    assert manifest["dropped"] == {"min_covered_samples": len(everything) - store.n_loci, "exclude": 0}
    assert manifest["samples_needed"] == 4
    assert manifest["samples"] == ["s0", "s1", "s2", "s3"]
    assert 0 < manifest["n_scaled"] == sum(t == 65535 for row in loci_of(store).values() for _, t in row)
    assert store.provenance == LOCI


@pytest.mark.parametrize(("value", "needed"), [(0.5, 3), (0.2, 1), (0.21, 2), (0.999, 5), (1, 1), (5, 5), (1e-9, 1)])
def test_samples_needed_of_five(value, needed):
    assert samples_needed(value, 5) == needed


def test_a_fraction_is_not_raised_by_rounding():
    assert all(samples_needed(k / n, n) == k for n in range(2, 200) for k in range(1, n))
    assert samples_needed(0.1, 30) == math.ceil(3)


def test_more_samples_needed_than_there_are(tmp_path):
    with pytest.raises(UserError, match=r"min_covered_samples is 3; expected at most 1"):
        run(tmp_path, [[("c", 1, "+", "CG", 1, 2)]], AssembleSettings("cpg", True, 3))


def test_no_locus_left_names_the_filter_and_keeps_the_old_folder(tmp_path):
    settings = AssembleSettings("cpg", True, 1)
    run(tmp_path, [[("c", 1, "+", "CG", 1, 2)], [("c", 9, "+", "CG", 1, 2)]], settings)
    with pytest.raises(UserError, match=r"no locus left: 2 seen in 2 samples.*min_covered_samples = 2"):
        run(
            tmp_path,
            [[("c", 1, "+", "CG", 1, 2)], [("c", 9, "+", "CG", 1, 2)]],
            AssembleSettings("cpg", True, 2),
        )
    assert LociStore.open(tmp_path / "loci").n_loci == 2
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_no_locus_in_any_interval(tmp_path):
    (tmp_path / "r.bed").write_text("c\t100\t200\nother\t0\t50\n")
    with pytest.raises(
        UserError, match=r"no locus seen: the 1 counts files hold 1 rows and none lies in an interval of"
    ):
        run(tmp_path, [[("c", 1, "+", "CG", 1, 2)]], AssembleSettings({"bed": str(tmp_path / "r.bed")}, True, 1))


def test_counts_without_a_row_point_at_the_filters_of_ingest(tmp_path):
    message = "no locus seen: the 2 counts files hold no row.*loci.coverage.min, loci.context and loci.contigs"
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, [[], []], AssembleSettings("cpg", True, 1))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "loci").exists()


def test_a_sample_given_twice(tmp_path):
    paths = [write_counts(tmp_path / f"{name}.parquet", [("c", 1, "+", "CG", 1, 2)], "same") for name in "ab"]
    with pytest.raises(UserError, match=r"b\.parquet: holds the sample 'same', as .*a\.parquet does"):
        assemble(paths, tmp_path / "out", AssembleSettings("cpg", True, 1), LOCI, threads=1, on_joined=print)


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    path = write_counts(tmp_path / "a.parquet", [("c", 1, "+", "CG", 1, 2)])
    with pytest.raises(UserError, match=r"would be replaced but holds 'a\.parquet'"):
        assemble([path], tmp_path, AssembleSettings("cpg", True, 1), LOCI, threads=1, on_joined=print)
    assert path.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1\t5\n", r"line 1: 2 columns; expected contig, start, end"),
        ("chr1\t1\t2\nchr1\t-5\t9\n", r"line 2: start is '-5'; expected a whole number"),
        ("chr1\t5\tx\n", r"line 1: end is 'x'"),
        ("#\nchr1\t5\t5\n", r"line 2: end is 5; expected a position after the start, 5"),
        ("#nothing\n", r"holds no interval"),
    ],
)
def test_bad_bed(tmp_path, text, message):
    path = tmp_path / "bad.bed"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_bed(path)


def test_bed_may_be_compressed_and_spaced(tmp_path):
    path = tmp_path / "r.bed.gz"
    path.write_bytes(gzip.compress(b"chr1 7 9 x\nchr1 1 3\n"))
    assert read_bed(path)["chr1"].starts.tolist() == [1, 7]
    path.write_bytes(gzip.compress(b"chr1 7 9 x\n" * 1000)[:-12])
    with pytest.raises(UserError, match="cannot be read as BED"):
        read_bed(path)
    with pytest.raises(UserError, match="cannot be read as BED"):
        read_bed(tmp_path / "absent.bed")


def test_command(tmp_path, capsys):
    path = write_counts(tmp_path / "x.parquet", [("c", 1, "+", "CG", 1, 2), ("c", 190, "+", "CG", 2, 2)], "sample one")
    config = json.dumps({"loci": {"unit": {"tile": 100}, "min_covered_samples": 1}, "seed": 8})
    with pytest.raises(SystemExit) as stopped:
        main(["assemble", str(path), "--output", str(tmp_path / "loci"), "--config", config])
    assert stopped.value.code == 0
    store = LociStore.open(tmp_path / "loci")
    assert store.samples == ("sample one",)
    assert store.unit == {"tile": 100}
    assert store.provenance.seed == 8
    assert loci_of(store) == {("c", 0, 100, ".", "CG"): [(1, 2)], ("c", 100, 200, ".", "CG"): [(2, 2)]}
    with pytest.raises(SystemExit) as stopped:
        main(["assemble", str(tmp_path / "none.parquet"), "--output", str(tmp_path / "loci"), "--config", config])
    assert stopped.value.code == 2
    assert "none.parquet: no such file" in capsys.readouterr().err
