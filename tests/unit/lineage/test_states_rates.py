"""Posterior of the rates: gradients, prior, an independent sampler, what is not identified, blocks, real counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from divergence_cases import lines_pedigree
from lineage_cases import LINEAGES
from numpy.testing import assert_allclose
from places import DATA
from scipy.special import logit
from scipy.stats import beta as beta_distribution

from epivi.cohort.pedigree_files import read_pedigree
from epivi.cohort.samples import read_sample_sheet
from epivi.families.epimutation.draw import TrueEmission, TrueRates, simulate_reads, simulate_states
from epivi.ingest.text import open_source
from epivi.lineage.elimination import EliminationPlan, build_plan
from epivi.lineage.emission import collect_pairs, encode, log_probability
from epivi.lineage.likelihood import EpimutationRates, log_likelihood, sum_samples
from epivi.lineage.lineage import build_lineage
from epivi.lineage.rates import (
    ClassReads,
    RateObjective,
    RatePosterior,
    log_prior,
    profile_ratio,
    rate_posterior,
    unpack,
)

COL0 = DATA / "pedigrees" / "col0_ma"
EMISSION = TrueEmission(0.01, 0.03, 0.02, coverage_mean=10.0)


def draw_class(
    name: str, n_loci: int, seed: int, rates: TrueRates, chunks: int = 1, repeats: int = 1
) -> tuple[EliminationPlan, ClassReads]:
    """Reads of a lineage of LINEAGES or of `lines`; every locus occurs `repeats` times in a row."""
    lineage = LINES if name == "lines" else LINEAGES[name]
    random = np.random.default_rng(seed)
    drawn = simulate_states(lineage, rates, n_loci, random)
    meth, total = simulate_reads(drawn.states[:, lineage.samples], EMISSION, random)
    pairs = collect_pairs([(meth, total)])
    codes = np.repeat(encode(pairs, meth, total), repeats, axis=1)
    parts = [np.ascontiguousarray(part) for part in np.array_split(codes, chunks, axis=1)]
    return build_plan(lineage), ClassReads(pairs, lambda: parts)


_pedigree, _individuals = lines_pedigree(2, (1, 4, 11))
LINES = build_lineage(_pedigree, _individuals)
FAST = TrueRates(0.02, 0.05, np.array([0.6, 0.1, 0.3]))


def test_gradient_of_the_posterior() -> None:
    plan, reads = draw_class("mixed", 300, 1, FAST, chunks=3)
    objective = RateObjective(plan, reads, threads=2)
    for seed in range(3):
        at = np.random.default_rng(seed).normal([-3, -3, -4, -4, -3, -1, 0], 0.5)
        value, slope = objective.posterior(at)
        assert value == pytest.approx(objective.likelihood(at) + log_prior(torch.as_tensor(at)).item(), rel=1e-12)
        steps = np.eye(7) * 1e-5
        finite = [(objective.posterior(at + step)[0] - objective.posterior(at - step)[0]) / 2e-5 for step in steps]
        assert_allclose(slope, finite, rtol=1e-5, atol=1e-4)


def test_prior_is_normalized() -> None:
    """Each density times the Jacobian of its scale."""
    at = torch.tensor([-9.0, -5.0, -4.0, -3.0, -2.0, 0.3, -0.8], dtype=torch.float64)
    rates, emission = unpack(at)
    expected = 0.0
    for value in torch.stack(rates[:2]).numpy():
        expected += beta_distribution.logpdf(value, 0.5, 20) + np.log(value * (1 - value))
    for value in torch.stack(emission).numpy():
        expected += beta_distribution.logpdf(value, 1, 20) + np.log(value * (1 - value))
    expected += np.log(2) + np.log(rates.founder.numpy()).sum()  # a uniform density of 2 over the triangle
    jacobian = torch.autograd.functional.jacobian(lambda x: unpack(x)[0].founder[1:], at)[:, 5:]
    assert torch.det(jacobian).log().item() == pytest.approx(np.log(rates.founder.numpy()).sum())
    assert log_prior(at).item() == pytest.approx(expected, rel=1e-12)


def metropolis(plan: EliminationPlan, reads: ClassReads, start: np.ndarray, steps: int, chains: int) -> np.ndarray:
    """Draws [steps, chains, 7] of the same posterior by random-walk Metropolis, with the likelihood in torch."""
    random = np.random.default_rng(1)
    codes = torch.as_tensor(next(iter(reads.chunks())), dtype=torch.int64)
    meth, total = torch.as_tensor(reads.pairs.meth), torch.as_tensor(reads.pairs.total)

    def density(unknowns: np.ndarray) -> np.ndarray:
        variable = torch.as_tensor(unknowns)
        rates, emission = unpack(variable)
        table = log_probability(emission, meth, total).permute(2, 0, 1)[:, :, codes]  # [3, chains, S, L]
        nodes = sum_samples(plan, table.permute(2, 0, 1, 3))
        column = EpimutationRates(rates.alpha[:, None], rates.beta[:, None], rates.founder[:, None])
        return (log_likelihood(plan, column, nodes).sum(-1) + log_prior(variable)).numpy()

    now = start + random.normal(scale=0.1, size=(chains, 7))
    value, spread, draws = density(now), 0.3 * np.ones(7), []
    for step in range(steps):
        if step < steps // 3:
            spread = 0.6 * now.std(axis=0)
        proposed = now + spread * random.normal(size=now.shape)
        new = density(proposed)
        accepted = np.log(random.random(chains)) < new - value
        now, value = np.where(accepted[:, None], proposed, now), np.where(accepted, new, value)
        draws.append(now)
    return np.array(draws)


@pytest.mark.slow
def test_posterior_agrees_with_metropolis() -> None:
    """Means and SDs of the unknowns of 60 loci, within the sampler's errors; the log evidence by another seed."""
    plan, reads = draw_class("replicates", 60, 2, FAST)
    posterior = rate_posterior(plan, reads, draws=2048, seed=1)
    assert posterior.khat < 0.5
    chains = metropolis(plan, reads, posterior.mode, steps=900, chains=120)[300:]
    by_field = {
        "alpha": chains[..., 0],
        "beta": chains[..., 1],
        "false_methylated": chains[..., 2],
        "false_unmethylated": chains[..., 3],
        "dispersion": chains[..., 4],
    }
    for name, draws in by_field.items():
        value = getattr(posterior, name)
        value = np.log(value) - np.log1p(-value)
        mean = posterior.weight @ value
        sd = np.sqrt(posterior.weight @ (value - mean) ** 2)
        error = draws.mean(axis=0).std(ddof=1) / np.sqrt(draws.shape[1])
        assert abs(mean - draws.mean()) < 4 * error + 0.1 * sd
        assert sd == pytest.approx(draws.std(), rel=0.1)
        assert error < 0.1 * sd
        if name in ("alpha", "beta"):
            for level in (0.025, 0.5, 0.975):
                exact = np.quantile(draws, level)
                assert abs(logit(posterior.quantile(name, level)) - exact) < 0.35 * sd
    again = rate_posterior(plan, reads, draws=2048, seed=2)
    assert again.log_evidence == pytest.approx(posterior.log_evidence, abs=0.1)


def test_chunks_and_threads_do_not_matter() -> None:
    whole = rate_posterior(*draw_class("lines", 5000, 3, FAST), draws=64, seed=1)
    parts = rate_posterior(*draw_class("lines", 5000, 3, FAST, chunks=3), draws=64, seed=1, threads=2)
    assert whole.log_likelihood == pytest.approx(parts.log_likelihood, abs=1e-3)
    assert_allclose(parts.mode, whole.mode, atol=1e-3)
    assert parts.interval("alpha") == pytest.approx(whole.interval("alpha"), rel=1e-3)


def covers(posterior: RatePosterior, name: str, truth: float) -> bool:
    lower, upper = posterior.interval(name, 0.999)
    return lower <= truth <= upper


def test_rates_are_recovered() -> None:
    """Seeds are fixed; were they not, each of seven 99.9 % intervals would miss in 1 of 1,000 runs."""
    truth = TrueRates(1e-3, 3e-3, np.array([0.7, 0.05, 0.25]))
    posterior = rate_posterior(*draw_class("lines", 4000, 4, truth), draws=256, seed=1)
    assert posterior.khat < 0.5
    assert covers(posterior, "alpha", 1e-3)
    assert covers(posterior, "beta", 3e-3)
    assert covers(posterior, "false_methylated", 0.01)
    assert covers(posterior, "false_unmethylated", 0.03)
    assert covers(posterior, "dispersion", 0.02)
    assert_allclose(posterior.weight @ posterior.founder, [0.7, 0.05, 0.25], atol=0.04)
    assert not covers(posterior, "alpha", 2e-3)
    assert (posterior.drop > 30).all()


def test_a_rate_that_nothing_tells_has_an_upper_limit_only() -> None:
    """Unmethylated sites that never change: no limit for losses but the prior's, and one from above for gains."""
    quiet = TrueRates(0.0, 0.0, np.array([1.0, 0.0, 0.0]))
    posterior = rate_posterior(*draw_class("lines", 2000, 5, quiet), draws=512, seed=1)
    assert posterior.khat < 0.7
    assert (posterior.drop < 0.5).all()
    assert posterior.interval("alpha")[0] == 0
    assert posterior.interval("alpha")[1] < 4 / (2000 * 2 * 11)  # of four events, where none was seen
    assert posterior.interval("beta")[0] == 0
    assert 0.05 < posterior.interval("beta")[1] < 0.3  # 0.12 is the prior's


def test_stretch_undoes_repeated_loci() -> None:
    """Every locus four times: intervals would be half as wide as they should be, and blocks double them.

    The ratio of SDs from 50 blocks has an error of about 0.2 (10 %).
    """
    plan, reads = draw_class("lines", 8000, 6, FAST, chunks=50, repeats=4)
    posterior = rate_posterior(plan, reads, draws=64, seed=1, blocks=True)
    assert_allclose(posterior.stretch, 2, atol=0.6)
    once = rate_posterior(*draw_class("lines", 8000, 6, FAST), draws=64, seed=1)
    for name in ("alpha", "beta"):
        wide, narrow = np.log(posterior.interval(name)), np.log(once.interval(name))
        assert wide[1] - wide[0] == pytest.approx(narrow[1] - narrow[0], rel=0.3)
    with pytest.raises(ValueError, match="1 blocks: expected more than 7"):
        rate_posterior(*draw_class("lines", 100, 6, FAST), draws=64, seed=1, blocks=True)


def test_profile_of_the_ratio() -> None:
    """Counts tell loss from gain, whatever the founder: the profile falls on both sides of the truth."""
    truth = TrueRates(1e-3, 3e-3, np.array([0.5, 0.05, 0.45]))
    plan, reads = draw_class("lines", 4000, 7, truth)
    posterior = rate_posterior(plan, reads, draws=64, seed=1)
    ratios = np.array([0.1, 1.0, 2.0, 3.0, 4.5, 9.0, 90.0])
    profile = profile_ratio(plan, reads, posterior, ratios)
    assert profile.log_likelihood.max() <= posterior.log_likelihood + 0.5
    assert profile.log_likelihood.max() > posterior.log_likelihood - 2
    assert (profile.log_likelihood[[0, -1]] < profile.log_likelihood.max() - 50).all()
    assert_allclose(profile.beta / profile.alpha, ratios, rtol=0.02)
    lower, upper = profile.supported()
    assert 1 < lower <= 3 <= upper < 9


@pytest.mark.skipif(not COL0.is_dir(), reason="no shared/data/pedigrees/col0_ma beside the clone")
def test_real_counts_of_col0_lines() -> None:
    """Rates of 13 plants at 744 sites, of which five are methylated.

    An independent fit of the same counts gave alpha 6.6e-5 (1.2e-5 to 3.5e-4). With the dispersion of the reads free,
    the data are 0.7 nats more likely with gains than without, so that the interval starts at zero; with reads that are
    all but binomial, for which the data speak much less, it would not. Of losses there is no limit below a hundredth.
    """
    pedigree = read_pedigree({"nodes": str(COL0 / "nodelist.fn"), "edges": str(COL0 / "edgelist.fn")})
    sheet = read_sample_sheet(str(COL0 / "nodelist.fn"))
    meth, total = (np.stack(reads, axis=1) for reads in zip(*(read_counts(path) for path in sheet.paths), strict=True))
    assert meth.shape == (744, 13)
    pairs = collect_pairs([(meth, total)])
    codes = encode(pairs, meth, total)
    plan = build_plan(build_lineage(pedigree, sheet.individuals))
    posterior = rate_posterior(plan, ClassReads(pairs, lambda: [codes]), seed=1)
    assert posterior.khat < 0.7
    assert posterior.drop[0] == pytest.approx(0.74, abs=0.05)
    lower, upper = posterior.interval("alpha")
    assert lower == 0
    assert 6.6e-5 < upper < 3.5e-4
    lower, upper = posterior.interval("beta")
    assert lower == 0
    assert 0.005 < upper < 0.1
    print(
        f"alpha {posterior.quantile('alpha', 0.5):.2g} {posterior.interval('alpha')}, beta {posterior.interval('beta')}"
    )


def read_counts(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Methylated and total reads [L] of a methylome table."""
    header = open_source(Path(path)).sample[0].split()
    columns = [header.index("counts.methylated"), header.index("counts.total")]
    meth, total = np.loadtxt(path, skiprows=1, usecols=columns, dtype=np.uint16).T
    return meth, total
