"""`epivi calibrate` on a small cohort on disk: what it writes, and how it ends where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_evidence_command import HYPOTHESES, Cohort, error_of, run
from test_evidence_command import cohort as cohort  # the fixture

from epivi.base.errors import UserError
from epivi.cohort.pedigree import pedigree_hash
from epivi.cohort.pedigree_files import read_pedigree
from epivi.commands import calibrate as calibrate_command
from epivi.discovery.columns import DISCOVERY_TABLES
from epivi.loci.store import read_provenance
from epivi.tables.parquet import Provenance, read_table, write_table
from epivi.verify.calibrate import AVERAGED, TRUE
from epivi.verify.columns import CALIBRATE_TABLES

FILES = ("bayes_factors", "coverage", "fdr", "lfdr", "sbc", "weights")
LOCI = 60
FEW = ("null", "pedigree")


def arguments(cohort: Cohort, output: Path, *more: str | Path, **changes: str | Path) -> list[str | Path]:
    options: dict[str, str | Path] = {
        "loci": cohort.path("loci"),
        "fit": cohort.path("fit"),
        "samples": cohort.path("samples.tsv"),
        "pedigree": cohort.path("pedigree.tsv"),
        "output": output,
        "config": cohort.config,
        "loci-per-scenario": str(LOCI),
    }
    pairs = [text for name, value in (options | changes).items() for text in (f"--{name}", value)]
    return ["calibrate", *pairs, *more]


def test_tables_and_figures_of_all_scenarios(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    figures = calibrate_command._draw_figures

    def few_figures(rows: dict[str, list[dict]], output: Path) -> None:
        """Pictures take seconds: of two scenarios only."""
        drawn.extend(dict.fromkeys(row["scenario"] for row in rows["sbc"]))
        figures({name: [row for row in found if row["scenario"] in FEW] for name, found in rows.items()}, output)

    monkeypatch.setattr(calibrate_command, "_draw_figures", few_figures)
    run(arguments(cohort, tmp_path / "out", "--seed", "5"))
    scenarios = {"model", "null", "overdispersed", "conversion", "pedigree"}
    assert set(drawn) == scenarios
    tables = {name: read_table(tmp_path / "out" / f"{name}.parquet", f"calibration_{name}") for name in FILES}
    for name, table in tables.items():
        assert table.column_names == [column.name for column in CALIBRATE_TABLES[f"calibration_{name}"]]
        provenance = read_provenance(tmp_path / "out" / f"{name}.parquet")
        assert (provenance.table, provenance.seed) == (f"calibration_{name}", 5)
        assert provenance.pedigree_hash == pedigree_hash(read_pedigree(str(cohort.path("pedigree.tsv"))))
        if name != "fdr":
            assert set(table["scenario"].to_pylist()) == scenarios
    pictures = {path.stem for path in (tmp_path / "out").glob("*.png")}
    kinds = {"coverage", "coverage_averaged", "lfdr", "fdr", "bayes_factors", "weights"}
    assert pictures == {f"sbc_{name}" for name in FEW} | kinds
    assert not list((tmp_path / "out").glob(".*"))
    overall = [row for row in tables["coverage"].to_pylist() if row["stratum"] == "overall" and row["level"] == 0.9]
    of_model = {(row["hypothesis"], row["parameter"]): row for row in overall if row["scenario"] == "model"}
    assert of_model[AVERAGED, "baseline"]["n_loci"] == of_model[TRUE, "baseline"]["n_loci"] == LOCI
    # Of few loci little can be said; but intervals that held the truth half as often as they should would be seen.
    for parameter in ("baseline", "spread"):
        assert of_model[TRUE, parameter]["share"] > 0.7
    null = [row for row in tables["weights"].to_pylist() if row["scenario"] == "null"]
    assert [row["drawn"] for row in null] == [1.0, 0.0, 0.0]
    assert [row["hypothesis"] for row in null] == list(HYPOTHESES)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds; the first test has seen them all."""
    monkeypatch.setattr(calibrate_command, "_draw_figures", lambda rows, output: None)


@pytest.mark.usefixtures("no_figures")
def test_a_seed_decides_and_threads_and_chunks_do_not(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(arguments(cohort, tmp_path / "one", "--scenario", "model", "--seed", "2"))
    run(arguments(cohort, tmp_path / "other", "--scenario", "model", "--seed", "3"))
    monkeypatch.setattr(calibrate_command, "CHUNK_LOCI", 17)
    run(arguments(cohort, tmp_path / "two", "--scenario", "model", "--seed", "2", "--threads", "2"))
    one, two, other = (
        pq.read_table(tmp_path / name / "bayes_factors.parquet")["mean"].to_numpy() for name in ("one", "two", "other")
    )
    np.testing.assert_allclose(one, two, rtol=1e-6)
    assert not np.allclose(one, other)


@pytest.mark.usefixtures("no_figures")
def test_scenarios_asked_for_and_weights_of_the_comparison(cohort: Cohort, tmp_path: Path) -> None:
    weights = {"hypothesis": list(HYPOTHESES), "weight": [0.25, 0.75, 0.0]}
    ranges = {f"{over}{end}": [0.5] * 3 for over in ("", "family_", "prior_") for end in ("lower", "upper")}
    ranges |= {f"merged_{name}": [0.5] * 3 for name in ("weight", "lower", "upper", "family_lower", "family_upper")}
    table = pa.table(weights | ranges | {"n_loci": [1] * 3, "merged": list(HYPOTHESES)})
    path = tmp_path / "compare" / "weights.parquet"
    write_table(table, path, DISCOVERY_TABLES["weights"], Provenance("weights", 1, "", ""))
    more = ("--scenario", "null", "--scenario", "model", "--compare", tmp_path / "compare")
    run(arguments(cohort, tmp_path / "out", *more))
    found = read_table(tmp_path / "out" / "weights.parquet", "calibration_weights").to_pylist()
    assert [row["scenario"] for row in found] == ["model"] * 3 + ["null"] * 3
    assert [row["given"] for row in found] == [0.25, 0.75, 0.0] * 2
    assert found[2]["drawn"] == 0.0


def test_coverage_is_resampled_from_the_whole_store(cohort: Cohort) -> None:
    store = cohort.store
    found = calibrate_command._resampled_coverage(store, 4000, np.random.default_rng(1))
    rows = {tuple(row) for block in store.blocks(64) for row in block.total.tolist()}
    drawn = {tuple(row) for row in found.tolist()}
    assert drawn <= rows
    assert len(drawn) > 0.99 * len(rows)
    # Rows come in random order, not in that of the genome.
    assert len({tuple(row) for row in found[:2000].tolist()}) > 0.99 * len(rows)


@pytest.mark.parametrize(
    ("more", "changes", "words"),
    [
        (("--scenario", "modl"), {}, "--scenario 'modl': did you mean 'model'?"),
        ((), {"fit": "nowhere"}, "nowhere/fit.json: no such file"),
        ((), {"loci": "nowhere"}, "nowhere/loci.json: no such file"),
        (("--compare", "nowhere"), {}, "nowhere/weights.parquet: no such file"),
    ],
)
def test_mistakes_are_one_line(
    more: tuple[str, ...],
    changes: dict[str, str],
    words: str,
    cohort: Cohort,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = error_of(capsys, arguments(cohort, tmp_path / "out", *more, **changes))
    assert line.startswith("epivi: error: ")
    assert words in line
    assert not (tmp_path / "out").exists()


def test_a_fit_of_another_model_is_refused(cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = json.loads(cohort.config)
    changed["model"]["priors"] = {"tau": {"alpha": 5, "beta": 2}}
    line = error_of(capsys, arguments(cohort, tmp_path / "out", config=json.dumps(changed)))
    assert "was fitted to other samples" in line


def test_one_family_has_nobody_to_exchange() -> None:
    known = ["model", "pedigree"]
    assert calibrate_command._scenario_names((), known, has_families=False) == ["model"]
    assert calibrate_command._scenario_names((), known, has_families=True) == known
    with pytest.raises(UserError, match="--scenario pedigree: the pedigree is one family"):
        calibrate_command._scenario_names(("model", "pedigree"), known, has_families=False)
