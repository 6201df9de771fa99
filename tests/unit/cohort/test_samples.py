"""Sample sheet: columns, covariates, AlphaBeta node lists, and one clear line for every mistake."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from places import DATA

from epivi.base.errors import UserError
from epivi.cohort.sameness import check_files
from epivi.cohort.samples import SampleSheet, alphabeta_samples, design_matrix, group_index, read_sample_sheet

PEDIGREES = DATA / "pedigrees"
needs_data = pytest.mark.skipif(not PEDIGREES.is_dir(), reason="the public test data is not beside the repository")

HEADER = "sample\tindividual\tpath\tformat\tfalse_methylated\tbatch\tage\n"


def _sheet(tmp_path: Path, text: str) -> SampleSheet:
    path = tmp_path / "samples.tsv"
    path.write_text(text)
    return read_sample_sheet(path)


def _message(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        _sheet(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(tmp_path / "samples.tsv"), "FILE")


def test_columns_in_the_order_of_the_sheet(tmp_path: Path) -> None:
    rows = "s2\tann\tb.cov\tbismark_cov\t0.01\tx\t3\n\n# a comment\ns1\tbob\ta.bed\t\t\ty\t4.5\n"
    sheet = _sheet(tmp_path, "# made by hand\n" + HEADER + rows)
    assert sheet.samples == ("s2", "s1")
    assert sheet.individuals == ("ann", "bob")
    assert sheet.paths == ("b.cov", "a.bed")
    assert sheet.formats == ("bismark_cov", "auto")
    np.testing.assert_array_equal(sheet.false_methylated, [0.01, 0.0])
    np.testing.assert_array_equal(sheet.false_unmethylated, [0.0, 0.0])
    assert sheet.columns == {"batch": ("x", "y"), "age": ("3", "4.5")}
    assert sheet.lines == (3, 6)


def test_windows_line_ends_byte_order_mark_and_missing_final_newline(tmp_path: Path) -> None:
    path = tmp_path / "samples.tsv"
    path.write_bytes(b"\xef\xbb\xbfsample\tindividual\tpath\r\ns1\tann\ta.cov\r\ns2\tbob\tb.cov")
    sheet = read_sample_sheet(path)
    assert sheet.samples == ("s1", "s2")
    assert sheet.paths == ("a.cov", "b.cov")


def test_capitals_in_the_header(tmp_path: Path) -> None:
    """The sheet's own columns are found whatever the case; covariates keep the name that the configuration says."""
    sheet = _sheet(tmp_path, "Sample\tINDIVIDUAL\tPath\tFalse_Methylated\tBatch\na\tann\ta.cov\t0.1\tb1\n")
    assert (sheet.samples, sheet.individuals, sheet.paths) == (("a",), ("ann",), ("a.cov",))
    assert (sheet.false_methylated.tolist(), dict(sheet.columns)) == ([0.1], {"Batch": ("b1",)})
    both = _sheet(tmp_path, "sample\tindividual\tpath\tSample\na\tann\ta.cov\tx\n")
    assert (both.samples, dict(both.columns)) == (("a",), {"Sample": ("x",)})
    assert "column 'path' is given twice" in _message(tmp_path, "sample\tindividual\tPath\tPATH\na\tann\tp\tq\n")


def test_paths_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "sample\tindividual\tpath\na\tann\t~/counts/a.cov\nb\tbob\tb~1.cov\n"
    assert _sheet(tmp_path, text).paths == (str(tmp_path / "counts" / "a.cov"), "b~1.cov")
    (tmp_path / "home.tsv").write_text(text)
    assert read_sample_sheet("~/home.tsv").path == str(tmp_path / "home.tsv")


def test_relative_paths_are_looked_up_here_and_beside_the_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, beside = tmp_path / "here", tmp_path / "sheets"
    for folder, names in ((here, ("both.cov",)), (beside, ("both.cov", "only.cov"))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("")
    monkeypatch.chdir(here)
    rows = "a\tx\tboth.cov\nb\tx\tonly.cov\nc\tx\tnone.cov\nd\tx\t/absent/none.cov\n"
    sheet = _sheet(beside, "sample\tindividual\tpath\n" + rows)
    assert sheet.paths == ("both.cov", str(beside / "only.cov"), "none.cov", "/absent/none.cov")
    with pytest.raises(UserError, match="does not exist") as error:
        check_files(sheet)
    first, second = str(error.value).splitlines()
    assert first.endswith(f"samples.tsv line 4: the file '{here}/none.cov' of sample 'c' does not exist")
    assert second.endswith("samples.tsv line 5: the file '/absent/none.cov' of sample 'd' does not exist")
    (here / "none.cov").write_text("")
    with pytest.raises(UserError, match=r"samples.tsv line 5: the file '/absent/none.cov' of sample 'd'"):
        check_files(sheet)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "FILE: the sample sheet is empty: expected a header line with sample, individual, path"),
        ("sample\tindividual\tpath\n", "FILE: the sample sheet has a header and no rows: expected at least one"),
        ("sample\tindividual\n", "FILE line 1: no column 'path' among 'sample', 'individual'"),
        (
            "sample,individual,path\na,b,c\n",
            "FILE line 1: no column 'sample' among 'sample,individual,path'; columns are",
        ),
        ("sample\tpath\tindividual\tpath\n", "FILE line 1: column 'path' is given twice"),
        ("sample\tindividual\tpath\na\tx\tp\nb\tx\n", "FILE line 3: 2 columns, expected 3 as in the header"),
        ("sample\tindividual\tpath\na\tx\tp\tq\n", "FILE line 2: 4 columns, expected 3 as in the header"),
        (
            "sample\tindividual\tpath\na\tx\tp\n#\nb\tx\tp\na\ty\tq\n",
            "FILE line 5: sample 'a' is given twice, first on line 2",
        ),
        ("sample\tindividual\tpath\na b\tx\tp\n", "FILE line 2: sample is 'a b': expected a name of letters, digits"),
        ("sample\tindividual\tpath\n../a\tx\tp\n", "FILE line 2: sample is '../a': expected a name"),
        (
            "sample\tindividual\tpath\na\tNA\tp\n",
            "FILE line 2: individual is 'NA': expected an individual of the pedigree",
        ),
        ("sample\tindividual\tpath\na\tx\t \n", "FILE line 2: path is '': expected a path"),
        (
            "sample\tindividual\tpath\tfalse_methylated\na\tx\tp\t0.5\n",
            "FILE line 2: false_methylated is '0.5': expected a number from 0 to below 0.5",
        ),
        (
            "sample\tindividual\tpath\thaplotype\na\tx\tp\t\nb\tx\tp\tHP1\n",
            "FILE line 3: haplotype is 'HP1': expected all, unphased, or a whole number >= 1",
        ),
        (
            "sample\tindividual\tpath\tfalse_unmethylated\na\tx\tp\tnone\n",
            "FILE line 2: false_unmethylated is 'none': expected a number from 0 to below 0.5",
        ),
    ],
)
def test_one_clear_line(tmp_path: Path, text: str, expected: str) -> None:
    assert _message(tmp_path, text).startswith(expected)


def test_haplotypes_are_all_reads_where_nothing_is_said(tmp_path: Path) -> None:
    rows = "".join(f"s{number}\tx\tp\t{value}\n" for number, value in enumerate(["", "1", "unphased", "all", "12"]))
    sheet = _sheet(tmp_path, f"sample\tindividual\tpath\thaplotype\n{rows}")
    assert sheet.haplotypes == ("all", "1", "unphased", "all", "12")
    assert "haplotype" not in sheet.columns
    assert _with_columns(tmp_path, age=["1", "2"]).haplotypes == ("all", "all")


def test_missing_sheet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.tsv: the sample sheet does not exist$"):
        read_sample_sheet(tmp_path / "none.tsv")


# ---- covariates


def _with_columns(tmp_path: Path, **columns: list[str]) -> SampleSheet:
    count = len(next(iter(columns.values())))
    lines = ["\t".join(["sample", "individual", "path", *columns])]
    lines += ["\t".join([f"s{i}", f"i{i}", "p", *(values[i] for values in columns.values())]) for i in range(count)]
    return _sheet(tmp_path, "\n".join(lines) + "\n")


def test_design_matrix_standardizes_numbers_and_centres_categories(tmp_path: Path) -> None:
    sheet = _with_columns(tmp_path, age=["1", "2", "3", "6"], batch=["z", "b", "b", "a"], plate=["1", "2", "x", "2"])
    matrix, names = design_matrix(sheet, ["batch", "age", "plate"])
    assert [name.name for name in names] == ["batch[b]", "batch[z]", "age", "plate[2]", "plate[x]"]
    assert [name.scale for name in names] == pytest.approx([1, 1, np.sqrt(3.5), 1, 1])
    assert [name.reference for name in names] == ["a", "a", None, "1", "1"]
    assert matrix.shape == (4, 5)
    np.testing.assert_allclose(matrix[:, 0], [-0.5, 0.5, 0.5, -0.5])
    np.testing.assert_allclose(matrix[:, 1], [0.75, -0.25, -0.25, -0.25])
    np.testing.assert_allclose(matrix[:, 2], np.array([-2, -1, 0, 3]) / np.sqrt(3.5))
    np.testing.assert_allclose(matrix.mean(axis=0), 0, atol=1e-12)
    assert design_matrix(sheet, [])[0].shape == (4, 0)


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        (["1", "NA", "3"], "age", "FILE line 3: column 'age' of sample 's1' is missing: expected a value"),
        (["1", "2", ""], "age", "FILE line 4: column 'age' of sample 's2' is missing: expected a value"),
        (["5", "5", "5"], "age", "FILE: column 'age' is '5' in every sample: expected a column that varies"),
        (["5", "5.0", "5"], "age", "FILE: column 'age' is '5' in every sample: expected a column that varies"),
        (["1", "2", "3"], "aged", "FILE: the sample sheet has no column 'aged'; did you mean 'age'?"),
    ],
)
def test_design_matrix_errors(tmp_path: Path, values: list[str], name: str, expected: str) -> None:
    sheet = _with_columns(tmp_path, age=values)
    with pytest.raises(UserError) as caught:
        design_matrix(sheet, [name])
    assert str(caught.value).replace(sheet.path, "FILE") == expected


def test_group_index(tmp_path: Path) -> None:
    sheet = _with_columns(tmp_path, cage=["c2", "c10", "c2", "c1"])
    index, levels = group_index(sheet, "cage")
    assert levels == ("c1", "c10", "c2")
    assert index.dtype == np.int32
    np.testing.assert_array_equal(index, [2, 1, 2, 0])
    with pytest.raises(UserError, match="has no column 'litter'"):
        group_index(sheet, "litter")


# ---- AlphaBeta node lists


def test_node_list_gives_a_sheet(tmp_path: Path) -> None:
    path = tmp_path / "nodelist.fn"
    path.write_text("filename,node,gen,meth\n./a b.txt,0_0,0,Y\n-,1_1,1,N\nc.txt,2_1,2,y")
    sheet = read_sample_sheet(path)
    assert sheet.samples == sheet.individuals == ("0_0", "2_1")
    assert sheet.paths == (os.path.join(tmp_path, "a b.txt"), os.path.join(tmp_path, "c.txt"))
    assert sheet.lines == (2, 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("filename,node,meth\n", "FILE line 1: no column 'gen' among"),
        ("filename,node,gen,meth\na,x,0,Y\nb,x,1,Y\n", "FILE line 3: node 'x' is given twice, first on line 2"),
        ("filename,node,gen,meth\na,x,1.5,Y\n", "FILE line 2: gen is '1.5': expected a whole number >= 0"),
        ("filename,node,gen,meth\na,x,1,yes\n", "FILE line 2: meth is 'yes': expected Y or N"),
        ("filename,node,gen,meth\na,x,1\n", "FILE line 2: 3 columns, expected 4 as in the header"),
        ("filename,node,gen,meth\na,x,1,N\n", "FILE: no node has meth = Y: expected at least one measured node"),
    ],
)
def test_node_list_errors(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "nodelist.fn"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        alphabeta_samples(path)
    assert str(caught.value).replace(str(path), "FILE").startswith(expected)


@needs_data
def test_published_node_lists() -> None:
    sheet = read_sample_sheet(PEDIGREES / "col0_ma" / "nodelist.fn")
    assert len(sheet.samples) == 13
    check_files(sheet)
    assert Path(sheet.paths[0]).name == "methylome_Col0_G0_All.txt"
    assert len(read_sample_sheet(PEDIGREES / "ma1_1" / "nodelist.fn").samples) == 27


def test_all_mistakes_of_a_sheet_are_said_in_one_go(tmp_path: Path) -> None:
    header = "sample\tindividual\tpath\tfalse_methylated\tparent_of_origin\thaplotype\n"
    rows = "a/b\tx\ta.cov\t0.7\t\t\nc\t\tc.cov\t\tfather\t\nc\ty\t\t\t\tfirst\n"
    with pytest.raises(UserError) as error:
        _sheet(tmp_path, header + rows)
    lines = [line.removeprefix(f"{tmp_path}/samples.tsv ") for line in str(error.value).splitlines()]
    assert [line.split(":")[0] for line in lines] == [
        "line 4",
        "line 2",
        "line 3",
        "line 4",
        "line 4",
        "line 3",
        "line 2",
    ]
    words = [
        "given twice",
        "sample is 'a/b'",
        "individual is ''",
        "path is ''",
        "haplotype is 'first'",
        "parent_of_origin",
    ]
    for line, word in zip(lines, [*words, "false_methylated is '0.7'"], strict=True):
        assert word in line


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("sample\tindividual\tpath\tformatt", "column 'formatt': did you mean 'format'"),
        ("sample\tindividual\tpath\tHaplotypes", "column 'Haplotypes': did you mean 'haplotype'"),
        ("sample\tindividul\tpath\tbatch", "no column 'individual' among .*; is it 'individul'"),
    ],
)
def test_misspelt_columns_get_a_suggestion(tmp_path: Path, header: str, message: str) -> None:
    """Also those that need not be there, which would pass for a covariate without a word."""
    with pytest.raises(UserError, match=message):
        _sheet(tmp_path, f"{header}\na\tx\ta.cov\tauto\n")
    assert _sheet(tmp_path, "sample\tindividual\tpath\tage\na\tx\ta.cov\t4\n").columns == {"age": ("4",)}
