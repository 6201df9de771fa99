"""Relatedness from files: forms, what is refused, and what becomes of a matrix."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import numpy as np
import pytest
from inference_cases import make_pedigree, make_sheet, one_hypothesis

from epivi.base.errors import UserError
from epivi.cohort.relatedness_matrix import content, read_relatedness_matrix, relatedness_among
from epivi.families.transmission.cohort import build_cohort
from epivi.field.layout import field_covariance

SQUARE = "name\ta\tb\tc\na\t1\t0.5\t0\nb\t0.5\t1.2\t0.25\nc\t0\t0.25\t0.8\n"
VALUES = np.array([[1.0, 0.5, 0.0], [0.5, 1.2, 0.25], [0.0, 0.25, 0.8]])
PAIRS = "individual1\tindividual2\trelatedness\nb\ta\t0.5\na\ta\t1\nb\tb\t1.2\nc\tc\t0.8\nc\tb\t0.25\n"
SHEET = make_sheet(("a", "b", "c", "b"))


def written(folder: Path, text: str, name: str = "relatedness.tsv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    "text",
    [
        SQUARE,
        SQUARE.removeprefix("name\t"),  # as R writes it
        SQUARE.replace("\t", " ").removeprefix("name "),
        PAIRS,
        "b a 0.5\nc b .25\na a 1\nb b 1.2\nc c .8\n".join(("#IID1 IID2 relatedness\n", "")),
    ],
)
def test_forms_of_a_file(tmp_path: Path, text: str) -> None:
    matrix = read_relatedness_matrix(written(tmp_path, text))
    order = [matrix.individuals.index(name) for name in "abc"]
    np.testing.assert_array_equal(matrix.values[np.ix_(order, order)], VALUES)
    assert content(matrix) == content(read_relatedness_matrix(written(tmp_path, SQUARE, "other.tsv")))


def test_kinship_is_half_and_its_diagonal_may_be_left_out(tmp_path: Path) -> None:
    text = (
        "FID1\tID1\tFID2\tID2\tN_SNP\tHetHet\tIBS0\tKinship\n1\tb\t1\ta\t9\t0\t0\t0.25\n1\tc\t1\ta\t9\t0\t0\t0.0625\n"
    )
    matrix = read_relatedness_matrix(written(tmp_path, text))
    order = [matrix.individuals.index(name) for name in "abc"]
    np.testing.assert_array_equal(matrix.values[np.ix_(order, order)], [[1, 0.5, 0.125], [0.5, 1, 0], [0.125, 0, 1]])


def test_gzipped_files_and_another_content(tmp_path: Path) -> None:
    path = tmp_path / "relatedness.tsv.gz"
    path.write_bytes(gzip.compress(SQUARE.encode()))
    assert content(read_relatedness_matrix(str(path))) == content(read_relatedness_matrix(written(tmp_path, SQUARE)))
    other = read_relatedness_matrix(written(tmp_path, SQUARE.replace("0.8", "0.81")))
    assert content(other) != content(read_relatedness_matrix(str(path)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 names in line 1 and 0 lines below"),
        (SQUARE.replace("c\t0\t0.25\t0.8\n", ""), "3 names in line 1 and 2 lines below"),
        (SQUARE.replace("\nb\t", "\nx\t"), "line 3: 4 columns that begin with 'x'; expected 'b' and 3 numbers"),
        (SQUARE.replace("\t1.2", ""), "line 3: 3 columns that begin with 'b'; expected 'b' and 3 numbers"),
        (SQUARE.replace("1.2", "NA"), "line 3, column b: 'NA'; expected a finite number"),
        (SQUARE.replace("1.2", "inf"), "line 3, column b: 'inf'; expected a finite number"),
        (
            SQUARE.replace("a\t1\t0.5", "a\t1\t0.4"),
            "line 2, column b: 0.4, but 0.5 in line 3, column a; expected a symm",
        ),
        (SQUARE.replace("c", "a"), "line 1: 'a' is named twice"),
        (PAIRS + "a\tb\t0.3\n", "line 7, column relatedness: 0.3 for the pair 'a' and 'b', which had another value"),
        (PAIRS + "a\tb\n", "line 7: 2 columns; expected 3, as in the header"),
        (PAIRS.replace("relatedness", "value"), "no column relatedness or kinship"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError, match="relatedness") as caught:
        read_relatedness_matrix(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; expected a relatedness matrix"):
        read_relatedness_matrix(str(tmp_path / "none.tsv"))
    (tmp_path / "binary.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not text, or is damaged"):
        read_relatedness_matrix(str(tmp_path / "binary.tsv"))
    (tmp_path / "damaged.tsv.gz").write_bytes(gzip.compress(SQUARE.encode())[:-9])
    with pytest.raises(UserError, match="is not text, or is damaged"):
        read_relatedness_matrix(str(tmp_path / "damaged.tsv.gz"))
    with pytest.raises(UserError, match="expected a file, not a folder"):
        read_relatedness_matrix(str(tmp_path))


def test_who_was_sampled_must_be_there(tmp_path: Path) -> None:
    matrix = read_relatedness_matrix(written(tmp_path, SQUARE))
    sheet = make_sheet(("a", "B1"))
    with pytest.raises(
        UserError, match=r"no individual 'B1', who has a sample in samples\.tsv, line 3; did you mean 'b'"
    ):
        relatedness_among(matrix, sheet, sheet.individuals)
    without = read_relatedness_matrix(written(tmp_path, PAIRS.replace("c\tc\t0.8\n", "")))
    with pytest.raises(UserError, match="relatedness of 'c' with itself is 0; expected a number above 0"):
        relatedness_among(without, SHEET, SHEET.individuals)


def test_no_covariance_is_refused_and_rounding_is_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    far = read_relatedness_matrix(written(tmp_path, SQUARE.replace("0.5", "1.5")))
    with pytest.raises(
        UserError, match=r"smallest eigenvalue .* is -0\.4\d*, the largest 2\.6\d*; expected none below 0"
    ):
        relatedness_among(far, SHEET, SHEET.individuals)
    # Two that are one individual but for rounding, and one who is related to neither.
    text = "x\ta\tb\tc\na\t1\t1.0002\t0\nb\t1.0002\t1\t0\nc\t0\t0\t1\n"
    found = relatedness_among(read_relatedness_matrix(written(tmp_path, text)), SHEET, ("a", "b", "c"))
    assert "eigenvalues down to -0.0002 are set to 0" in caplog.text
    assert np.linalg.eigvalsh(found.values)[0] > -1e-12
    np.testing.assert_allclose(found.values[:2, :2], 1.0, atol=2e-4)
    np.testing.assert_array_equal(found.values[2, :2], 0.0)


def test_mean_of_the_diagonal_is_one_and_replicates_count_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    matrix = read_relatedness_matrix(written(tmp_path, SQUARE.replace("0.8", "2")))
    with caplog.at_level(logging.INFO):
        found = relatedness_among(matrix, SHEET, SHEET.individuals)
    assert found.scale == pytest.approx(1.4)
    assert "divided by 1.4" in caplog.text
    again = [0, 1, 2, 1]
    expected = np.where(VALUES == 0.8, 2.0, VALUES)[np.ix_(again, again)] / 1.4
    np.testing.assert_allclose(found.values, expected, rtol=1e-15)
    some = relatedness_among(matrix, SHEET, ("c", "a"))  # b has no sample: the scale is that of the others
    np.testing.assert_allclose(some.values, np.array([[2.0, 0.0], [0.0, 1.0]]) / 1.5, rtol=1e-15)


def test_whom_the_matrix_relates_are_one_block_and_haplotypes_share_it(tmp_path: Path) -> None:
    path = written(tmp_path, SQUARE.replace("0.25", "0"))
    hypothesis = one_hypothesis(relatedness={"file": path})
    pedigree = make_pedigree(("a",), ("b",), ("c",))
    (field,) = build_cohort(SHEET, pedigree, [], [hypothesis]).fields
    assert np.diff(field.block_start).tolist() == [2, 1]
    halves = make_sheet(("a", "a", "b", "c"), haplotypes=("1", "2", "all", "all"), paths=("a", "a", "b", "c"))
    trio = make_pedigree(("m",), ("f",), ("a", "m", "f"), ("b",), ("c",))
    (field,) = build_cohort(halves, trio, [], [hypothesis]).fields
    found = field_covariance(field, np.array([[1.0, 0.0]]), np.zeros(1), nugget=0.0)[0]
    of_sample = found[np.ix_(field.latent_of_sample, field.latent_of_sample)]
    np.testing.assert_allclose(of_sample[:3, :3], [[1, 1, 0.5], [1, 1, 0.5], [0.5, 0.5, 1.2]], atol=1e-12)
