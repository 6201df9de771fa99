"""`epivi calibrate` on a fit of the demo cohort: what the tables claim of single loci, on tens of thousands of them.

The fit is learned from the demo's counts, so that hyper-parameters, guide and coverage are those of a real run; loci
are drawn from it. Seeds are fixed. False-alarm rates, were they not: for coverage a sum over strata of at most 5 % (1.5
points are three standard errors of a 50 % interval in 10,000 loci, and seven of a 95 % interval); for the means of
Bayes factors 0.3 % each, 2 % together. Run with `pytest -m slow -s` to see the figures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epivi.cli import main
from epivi.cohort.samples import read_sample_sheet
from epivi.families.transmission.columns import PARAMETERS
from epivi.tables.parquet import read_table
from epivi.verify.calibrate import AVERAGED, TRUE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {name: str(ROOT / "config" / name) for name in ("config.yaml", "samples.tsv", "pedigree.tsv")}
LOCI = 36_000
FEWER_LOCI = 8_000
TOLERANCE = 0.015  # of coverage, where there are LOCI_ENOUGH
LOCI_ENOUGH = 10_000
Rows = list[dict[str, Any]]


def run(*arguments: str | Path | int) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    assert not leaving.value.code


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The demo cohort, ingested, assembled and fitted: the options that calibrate takes."""
    folder = tmp_path_factory.mktemp("demo")
    config = ["--config", CONFIG["config.yaml"]]
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        sheet = read_sample_sheet(CONFIG["samples.tsv"])
        counts = [folder / f"{sample}.parquet" for sample in sheet.samples]
        for sample, path, target in zip(sheet.samples, sheet.paths, counts, strict=True):
            quality = folder / f"{sample}.json"
            run("ingest", path, "--sample", sample, "--output", target, "--qc", quality, *config)
    finally:
        os.chdir(before)
    run("assemble", *counts, "--output", folder / "loci", *config)
    cohort = ["--samples", CONFIG["samples.tsv"], "--pedigree", CONFIG["pedigree.tsv"], *config]
    run("fit", "--loci", folder / "loci", "--output", folder / "fit", "--threads", 2, *cohort)
    return ["--loci", folder / "loci", "--fit", folder / "fit", *cohort, "--threads", "2", "--seed", "1"]


def calibrated(inputs: Sequence[str | Path], output: Path, loci: int, scenarios: Sequence[str]) -> dict[str, Rows]:
    asked = [text for name in scenarios for text in ("--scenario", name)]
    run("calibrate", *inputs, "--output", output, "--loci-per-scenario", loci, *asked)
    return {path.stem: read_table(path, f"calibration_{path.stem}").to_pylist() for path in output.glob("*.parquet")}


@pytest.fixture(scope="module")
def model(inputs: list[str | Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    return calibrated(inputs, tmp_path_factory.mktemp("model"), LOCI, ["model"])


@pytest.fixture(scope="module")
def others(inputs: list[str | Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    return calibrated(inputs, tmp_path_factory.mktemp("others"), FEWER_LOCI, ["null", "overdispersed", "pedigree"])


def test_intervals_cover_overall_and_in_every_large_stratum(model: dict[str, Rows]) -> None:
    """Within 1.5 points; 50 % intervals in strata within 1.5 points of what their sampling error leaves possible.

    50 % intervals are interpolated, and those of the heritable share cover about one point too often, because its
    posterior is more peaked than three quantiles tell: at 10,000 loci, where the standard error is half a point, that
    can show as more than 1.5.
    """
    judged = [row for row in model["coverage"] if row["n_loci"] >= LOCI_ENOUGH]
    for row in sorted(judged, key=lambda row: -abs(row["share"] - row["level"]))[:5]:
        print(f"    furthest from nominal of {len(judged)}: {row}")
    for row in judged:
        if row["level"] == 0.5 and row["stratum"] != "overall":
            assert row["lower"] < row["level"] + TOLERANCE, row
            assert row["upper"] > row["level"] - TOLERANCE, row
        else:
            assert abs(row["share"] - row["level"]) < TOLERANCE, row
    seen = {(row["hypothesis"], row["parameter"], row["stratum"]) for row in judged}
    # Strata by depth are of equal size; by baseline some are smaller.
    wanted = {(kind, name, "overall") for kind in (TRUE, AVERAGED) for name in PARAMETERS}
    wanted |= {(AVERAGED, name, "depth") for name in PARAMETERS}
    assert wanted <= seen
    assert any(stratum == "baseline" for _, _, stratum in seen)


def test_truths_are_spread_evenly_over_their_posteriors(model: dict[str, Rows]) -> None:
    """No ECDF is further than a hundredth, and four standard errors, from that of uniform values."""
    furthest: dict[tuple[str, str], float] = {}
    for row in model["sbc"]:
        error = np.sqrt(row["point"] * (1 - row["point"]) / row["n_loci"])
        key = (row["hypothesis"], row["parameter"])
        furthest[key] = max(furthest.get(key, 0.0), abs(row["ecdf"] - row["point"]) - 4 * error)
    print(f"    {furthest}")
    assert len(furthest) > 20
    assert max(furthest.values()) < 0.01


def test_bayes_factors_have_mean_one(model: dict[str, Rows]) -> None:
    """Under the null, within three standard errors; and inverse, under each hypothesis."""
    assert len(model["bayes_factors"]) == 8
    for row in model["bayes_factors"]:
        print(f"    {row}")
        assert abs(row["mean"] - 1) < 3 * row["standard_error"], row
        assert row["standard_error"] < 0.05
    for row in model["bayes_factors"]:
        assert row["largest_share"] < 0.1, "the mean rests on few loci"


def test_lfdr_is_a_frequency(model: dict[str, Rows]) -> None:
    """In bins of 200 loci and more; four standard errors, false-alarm rate 1e-4 each."""
    bins = [row for row in model["lfdr"] if row["weights"] == "given" and row["n_loci"] >= 200]
    assert len(bins) >= 6
    for row in bins:
        print(f"    lfdr {row['mean_lfdr']:.3f}: {row['share']:.3f} of {row['n_loci']} are null")
        error = np.sqrt(row["mean_lfdr"] * (1 - row["mean_lfdr"]) / row["n_loci"])
        assert abs(row["share"] - row["mean_lfdr"]) < 4 * error, row


def test_realized_false_discoveries_are_as_announced(model: dict[str, Rows]) -> None:
    called = [row for row in model["fdr"] if row["weights"] == "given" and row["n_loci"] >= 100]
    assert len(called) >= 3
    for row in called:
        print(f"    q <= {row['nominal']}: {row['n_loci']} calls, {row['share']:.3f} false, power {row['power']:.3f}")
        error = np.sqrt(row["announced"] * (1 - row["announced"]) / row["n_loci"])
        assert abs(row["share"] - row["announced"]) < 4 * error, row
        assert row["announced"] < row["nominal"]


@pytest.mark.parametrize("scenario", ["null", "pedigree"])
def test_where_nothing_is_transmitted_next_to_nothing_is_called(others: dict[str, Rows], scenario: str) -> None:
    """With weights estimated from the data: at a nominal rate of 5 % at most one locus in a thousand."""
    (row,) = (
        row
        for row in others["fdr"]
        if (row["scenario"], row["weights"], row["nominal"]) == (scenario, "estimated", 0.05)
    )
    print(f"    {row}")
    assert row["n_loci"] <= FEWER_LOCI / 1000
    weights = {row["hypothesis"]: row["weight"] for row in others["weights"] if row["scenario"] == scenario}
    print(f"    {weights}")
    assert weights["reset"] > 0.9


def test_misspecification_is_seen(others: dict[str, Rows]) -> None:
    """Reads that scatter more than binomially at null loci: their intervals of the spread miss it."""
    (row,) = (
        row
        for row in others["coverage"]
        if (row["scenario"], row["hypothesis"], row["parameter"], row["stratum"], row["level"])
        == ("overdispersed", "reset", "spread", "overall", 0.9)
    )
    print(f"    {row}")
    assert row["share"] < 0.8
