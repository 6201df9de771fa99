"""The comparison of methods: tables against their schema and what they claim against arithmetic on what was found."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pandas as pd
import pytest
from locus_cases import make_learned, make_model

from epivi.families.transmission.guide import GUIDES
from epivi.families.transmission.locus import amortized
from epivi.families.transmission.locus import methods as methods_module
from epivi.families.transmission.locus.nuts import NutsSettings
from epivi.loci.source import LocusSample
from epivi.verify import diagnose
from epivi.verify.columns import DIAGNOSE_TABLES
from epivi.verify.diagnose import (
    REFERENCE,
    Settings,
    Study,
    bound_rows,
    evidence_rows,
    posterior_rows,
    study,
    summary_rows,
)

LOCI = 4
METHODS = ("svi", "meanfield", "lrvb", "laplace", "ep")
NUTS_LOCI = 2


@pytest.fixture(scope="module", autouse=True)
def _few_draws() -> Iterator[None]:
    """What is claimed of draws holds within their own errors, and of a refined guide wherever it is on its way."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (amortized, diagnose):
            patch.setattr(module, "DRAWS", 1000)
        patch.setattr(amortized, "REFINE_STEPS", 60)
        yield


def run(methods: tuple[str, ...], loci: int = LOCI) -> Study:
    model, meth, total = make_model(make_learned(), LOCI)
    numbers = np.arange(loci)
    sample = LocusSample(np.array(["chr1"] * loci), 10 * numbers.astype(np.int32), numbers, meth[:loci], total[:loci])
    done: list[int] = []
    found = study(model, GUIDES["structured"], sample, Settings(methods, 64, NUTS_LOCI, 5), done.append)
    assert sum(done) == loci
    return found


@cache
def whole() -> Study:
    return run(METHODS)


def test_rows_are_those_of_the_schema() -> None:
    found = whole()
    tables = {
        "posteriors": posterior_rows(found),
        "evidences": evidence_rows(found, "reset"),
        "bounds": bound_rows(found),
        "summary": summary_rows(found),
    }
    for name, columns in tables.items():
        assert list(columns) == [column.name for column in DIAGNOSE_TABLES[f"diagnose_{name}"]]
        assert len({len(values) for values in columns.values()}) == 1
    coordinates = {"reset": 2 + 1 + 8, "epigenetic": 2 + 3 + 8}
    rows = pd.DataFrame(tables["posteriors"]).groupby(["hypothesis", "method"]).size()
    for (hypothesis, _), size in rows.items():
        assert size == coordinates[hypothesis] * LOCI
    assert set(tables["evidences"]["method"]) == {"svi", "meanfield", "laplace", "ep", "reference", "evidence"}
    assert set(tables["bounds"]["method"]) == {"svi", "refined", "meanfield"}


def test_evidence_and_ep_have_the_bayes_factors_of_the_reference_and_bounds_do_not() -> None:
    rows = pd.DataFrame(evidence_rows(whole(), "reset"))
    worst = rows[rows.hypothesis == "epigenetic"].groupby("method").log_bayes_factor_error.agg(lambda e: e.abs().max())
    assert worst["evidence"] < 0.02
    assert worst["ep"] < 0.02
    assert worst["reference"] == 0
    assert worst["svi"] > 0.05
    bounds = rows[rows.is_bound]
    assert set(bounds.method) == {"svi", "meanfield"}
    assert (bounds.error < 0).all()
    assert (rows[rows.hypothesis == "reset"].log_bayes_factor == 0).all()


def test_parts_of_a_bound_add_up() -> None:
    rows = pd.DataFrame(bound_rows(whole()))
    np.testing.assert_allclose(rows.accuracy - rows.complexity, rows.elbo)
    refined = rows[rows.method == "refined"]
    # The refined guide covers the posterior; 4.5 standard errors, and what the outer nodes leave.
    error = np.hypot(refined.divergence_se, refined.log_evidence_se)
    assert (refined.identity_gap.abs() < 4.5 * error + 0.01).all()
    gap = rows[rows.method == "svi"].amortization_gap.to_numpy()
    np.testing.assert_allclose(gap, refined.elbo.to_numpy() - rows[rows.method == "svi"].elbo.to_numpy())
    assert (gap > 0).all()  # the guide is untrained


def test_mutual_information_and_lost_variance_are_those_of_the_reference_covariance() -> None:
    rows = pd.DataFrame(bound_rows(whole()))
    rows = rows[(rows.method == "meanfield") & (rows.hypothesis == "epigenetic")]
    exact = whole().posteriors["epigenetic", REFERENCE].posterior
    alone = whole().posteriors["epigenetic", "meanfield"].posterior
    for locus in range(LOCI):
        keep = np.r_[0:2, 5:13]
        covariance = exact.covariance[locus][np.ix_(keep, keep)]
        # The divergence of a Gaussian from the product of its marginals.
        product = np.diag(np.diag(covariance))
        expected = 0.5 * (np.trace(np.linalg.inv(product) @ covariance) - len(keep) - np.log(np.linalg.det(covariance)))
        expected += 0.5 * np.log(np.diag(covariance)).sum()
        assert rows.mutual_information.iloc[locus] == pytest.approx(expected)
        lost = 1 - np.mean(np.diag(alone.covariance[locus])[keep] / np.diag(covariance))
        assert rows.variance_lost.iloc[locus] == pytest.approx(lost)
    assert (rows.variance_lost > 0.05).all()


def test_summary_is_arithmetic_on_the_posteriors() -> None:
    posteriors = pd.DataFrame(posterior_rows(whole()))
    summary = pd.DataFrame(summary_rows(whole())).set_index(["method", "reference", "hypothesis", "group"])
    field = posteriors[(posteriors.hypothesis == "epigenetic") & (posteriors.kind == "field")]
    index = ["pos", "coordinate"]
    method, exact = (field[field.method == name].set_index(index) for name in ("meanfield", "reference"))
    row = summary.loc["meanfield", "reference", "epigenetic", "field"]
    assert row.n == LOCI * 8
    assert row.bias_rms == pytest.approx(np.sqrt((((method["mean"] - exact["mean"]) / exact.sd) ** 2).mean()))
    assert row.sd_ratio_median == pytest.approx((method.sd / exact.sd).median())
    assert row.sd_ratio_median < 0.9
    assert summary.loc["ep", "reference", "epigenetic", "field"].sd_ratio_median == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_draws_of_nuts_stand_in_the_order_of_the_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty draws: coordinates in another order would be off by an SD and more. The sampler's own tests judge it."""
    monkeypatch.setattr(methods_module, "NUTS_SETTINGS", NutsSettings(chains=1, warmup=40, draws=60))
    found = run(("ep", "nuts"))
    rows = pd.DataFrame(posterior_rows(found))
    assert (rows[(rows.method == "nuts") & (rows.hypothesis == "epigenetic")]).shape[0] == NUTS_LOCI * (2 + 3 + 8)
    summary = pd.DataFrame(summary_rows(found)).set_index(["method", "reference", "hypothesis", "group"])
    against = summary.loc["ep", "nuts", "epigenetic", "field"]
    assert against.n == NUTS_LOCI * 8
    assert against.bias_rms < 0.6


def test_chunks_are_joined_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean-field is deterministic and knows no other locus."""
    monkeypatch.setattr(diagnose, "CHUNK_LOCI", 1)
    parts, both = pd.DataFrame(posterior_rows(run(("meanfield",), 2))), pd.DataFrame(posterior_rows(whole()))
    one = parts[parts.method == "meanfield"].reset_index(drop=True)
    other = both[(both.method == "meanfield") & (both.pos < 20)].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, other, rtol=1e-7)
