"""What the loci of each class share: rates from all of them, what follows for divergences, and what is identified."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from epivi.base.errors import UserError
from epivi.cohort.pedigree import Pedigree
from epivi.divergence.counts import sums_of_counts
from epivi.divergence.fit import DIFFERENCE, PROFILE_RATIOS, Assumptions, profile_ratio
from epivi.divergence.pairs import pair_times, pairs_of, uniparental_mode
from epivi.families.epimutation.density import LearnedStates
from epivi.lineage import rates
from epivi.lineage.elimination import EliminationPlan
from epivi.lineage.emission import CountPairs, collect_pairs, encode
from epivi.lineage.rates import ClassReads, RatePosterior, RatioProfile, rate_posterior, weighted_quantile
from epivi.lineage.transitions import STATES, UNIPARENTAL
from epivi.loci.classes import LocusClasses
from epivi.loci.store import LociStore

Array = NDArray[np.float64]
log = logging.getLogger(__name__)

BLOCKS = 30  # of neighbouring loci, in all, whose scores show what neighbours share
FEWEST_BLOCKS = 20  # below which the spread of the scores says nothing
KEPT_BYTES = 1 << 29  # of encoded reads kept in memory; more are encoded anew at every pass
PROFILE_STARTS = 5
LEAST_READS = 3  # of a site in a sample, for divergences
RATIOS = PROFILE_RATIOS[::2]  # of loss to gain, at which the likelihood is profiled
QUANTITIES = ("alpha", "beta", "ratio", *(f"founder_{state}" for state in STATES))
ERRORS = ("false_methylated", "false_unmethylated", "dispersion")


class ClassData:
    """The reads of the loci of one class of a store, block by block of neighbouring loci."""

    def __init__(self, store: LociStore, classes: LocusClasses, number: int) -> None:
        self._store, self._classes, self._number = store, classes, number
        self._index = store.global_blocks(-(-store.n_loci // BLOCKS))
        self._kept: list[NDArray[np.int32]] | None = None
        sizes = [len(meth) for meth, _ in self.counts()]
        self.loci = sum(sizes)
        self.blocks = len(sizes)
        self._pairs: CountPairs | None = None

    def counts(self) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint16]]]:
        """Methylated and total reads [L, S] of each block that has loci of the class."""
        for number in range(len(self._index)):
            counts = self.block(number)
            if len(counts[0]):
                yield counts

    def block(self, number: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Methylated and total reads of the class's loci in one block."""
        block = self._store.block(*self._index[number])
        some = self._classes.codes(block) == self._number
        return block.meth[some], block.total[some]

    def __len__(self) -> int:
        """Blocks of the store."""
        return len(self._index)

    def reads(self) -> ClassReads:
        """As the posterior of the rates wants them."""
        if self._pairs is None:
            self._pairs = collect_pairs(self.counts())
        return ClassReads(self._pairs, self._chunks)

    def joined_reads(self) -> ClassReads:
        """The same in one piece where they are kept, which is faster where blocks do not matter."""
        reads = self.reads()
        list(self._chunks())
        if self._kept is None:
            return reads
        whole = np.ascontiguousarray(np.concatenate(self._kept, axis=1))
        return reads._replace(chunks=lambda: [whole])

    def _chunks(self) -> Iterator[NDArray[np.int32]]:
        assert self._pairs is not None
        if self._kept is not None:
            yield from self._kept
            return
        encoded: Iterator[NDArray[np.int32]] = (encode(self._pairs, *counts) for counts in self.counts())
        if 4 * self.loci * len(self._store.samples) <= KEPT_BYTES:
            self._kept = list(encoded)
            encoded = iter(self._kept)
        yield from encoded


class ClassFit(NamedTuple):
    """Posterior of the rates of a class under shared rates, and the profile of its likelihood over their ratio."""

    name: str
    posterior: RatePosterior
    profile: RatioProfile


def fit_classes(
    plan: EliminationPlan, store: LociStore, classes: LocusClasses, seed: int, threads: int
) -> dict[str, ClassFit]:
    """Rates of every class that has loci, by name.

    Raises UserError where the search for the rates of a class does not converge.
    """
    fits = {}
    for number, name in enumerate(classes.names):
        data = ClassData(store, classes, number)
        if not data.loci:
            log.warning("class %s has no loci", name)
            continue
        reads = data.reads()
        try:
            blocks = data.blocks >= FEWEST_BLOCKS
            posterior = rate_posterior(plan, reads, seed=seed, blocks=blocks, threads=threads)
            profile = rates.profile_ratio(plan, data.joined_reads(), posterior, RATIOS, threads=threads)
        except RuntimeError as error:
            raise UserError(f"class {name}, {data.loci} loci: {error}") from None
        fits[name] = ClassFit(name, posterior, profile)
        log.info(
            "class %s: %d loci, gain %.3g (%.3g to %.3g), loss %.3g (%.3g to %.3g) per copy and generation",
            name, data.loci,
            posterior.quantile("alpha", 0.5), *posterior.interval("alpha"),
            posterior.quantile("beta", 0.5), *posterior.interval("beta"),
        )  # fmt: skip
        if posterior.khat > 0.7:
            log.warning("class %s: the intervals of its rates are uncertain (Pareto k-hat %.2f)", name, posterior.khat)
    return fits


def learned_states(fits: dict[str, ClassFit], classes: LocusClasses, hypotheses: int) -> LearnedStates:
    """The mode of every class's posterior; a class without loci has the numbers of the first that has some.

    # METHOD: evidences take the mode for known. With the thousands of loci of a class its uncertainty is small beside
    # what single loci have of their own; the table of rates states it.
    """
    first = next(iter(fits.values()))
    modes = np.array([fits.get(name, first).posterior.mode for name in classes.names])
    epimutation_rates, emission = rates.unpack(torch.as_tensor(modes))
    return LearnedStates(
        epimutation_rates.alpha.numpy(),
        epimutation_rates.beta.numpy(),
        epimutation_rates.founder.numpy(),
        emission.false_methylated.numpy(),
        emission.false_unmethylated.numpy(),
        emission.dispersion.numpy(),
        np.full(hypotheses, 1.0 / hypotheses),
    )


def packed(fit: ClassFit) -> dict[str, dict[str, torch.Tensor]]:
    """A class's fit as tensors, for a checkpoint."""
    return {
        part: {name: torch.as_tensor(value) for name, value in getattr(fit, part)._asdict().items()}
        for part in ("posterior", "profile")
    }


def unpacked(name: str, parts: dict[str, dict[str, torch.Tensor]]) -> ClassFit:
    """The fit that `packed` was given."""
    posterior, profile = (_numbers(parts[part]) for part in ("posterior", "profile"))
    return ClassFit(name, RatePosterior(**posterior), RatioProfile(**profile))


def _numbers(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.numpy() if value.dim() else value.item() for name, value in tensors.items()}


# --------------------------------------------------------------------------------------------------------------- tables


def rate_rows(fits: dict[str, ClassFit]) -> dict[str, list]:
    """Columns of the table `rates`."""
    rows: list[tuple] = []
    for name, fit in fits.items():
        posterior = fit.posterior
        values = [posterior.alpha, posterior.beta, posterior.beta / posterior.alpha, *posterior.founder.T]
        quantities = dict(zip(QUANTITIES, values, strict=True))
        quantities |= {error: getattr(posterior, error) for error in ERRORS}
        for parameter, value in quantities.items():
            if parameter in rates.UNKNOWNS:
                median, (lower, upper) = posterior.quantile(parameter, 0.5), posterior.interval(parameter)
            else:
                median, lower, upper = (weighted_quantile(value, posterior.weight, q) for q in (0.5, 0.025, 0.975))
            mean = float(posterior.weight @ value)
            rows.append((name, parameter, median, mean, lower, upper, posterior.loci))
    names = ("class", "parameter", "median", "mean", "lower", "upper", "n_loci")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def divergence_rows(fits: dict[str, ClassFit], pedigree: Pedigree) -> dict[str, list]:
    """Columns of the table `expected_divergence`, for 0 to the pedigree's number of generations.

    D(g) = sum_s founder_s sum_xy (T^g)_sx (T^g)_sy |x - y| / 2 of two lines g generations after they separated from an
    individual in the founders' proportions of states. Empty where not all edges are selfed, or all clonal.
    """
    names = ("class", "generations", "divergence", "lower", "upper")
    rows: list[tuple] = []
    mode = _line_mode(pedigree)
    if mode is not None:
        for name, fit in fits.items():
            drawn = expected_divergences(fit.posterior, mode, _depth(pedigree))
            for generation, values in enumerate(drawn):
                levels = (weighted_quantile(values, fit.posterior.weight, q) for q in (0.5, 0.025, 0.975))
                rows.append((name, generation, *levels))
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return dict(zip(names, map(list, columns), strict=True))


def expected_divergences(posterior: RatePosterior, mode: str, generations: int) -> list[Array]:
    """Expected divergence of two lines after 0 to `generations` generations, for each draw of the rates [D]."""
    alpha, beta = torch.as_tensor(posterior.alpha), torch.as_tensor(posterior.beta)
    step = UNIPARENTAL[mode](alpha, beta).numpy()
    power, out = np.broadcast_to(np.eye(3), step.shape), []
    for _ in range(generations + 1):
        out.append(np.einsum("ds,dsx,dsy,xy->d", posterior.founder, power, power, DIFFERENCE))
        power = power @ step
    return out


def profile_rows(
    fits: dict[str, ClassFit],
    store: LociStore,
    classes: LocusClasses,
    pedigree: Pedigree,
    individuals: Sequence[str],
    seed: int,
) -> dict[str, list]:
    """Columns of the table `ratio_profile`: what counts and pairwise divergences say of the ratio of loss to gain."""
    rows: list[tuple] = []
    for number, name in enumerate(classes.names):
        if name not in fits:
            continue
        profile = fits[name].profile
        below = profile.log_likelihood.max() - profile.log_likelihood
        rows += [
            (name, "likelihood", *row) for row in zip(profile.ratio, profile.alpha, profile.beta, below, strict=True)
        ]
        rows += [
            (name, "divergence", *row)
            for row in _divergence_profile(store, classes, number, pedigree, individuals, seed)
        ]
    names = ("class", "estimator", "ratio", "alpha", "beta", "loss_of_fit")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _divergence_profile(
    store: LociStore, classes: LocusClasses, number: int, pedigree: Pedigree, individuals: Sequence[str], seed: int
) -> list[tuple[float, float, float, float]]:
    """Ratio, rates and loss of fit of the least-squares estimator without penalty; none where it cannot be had."""
    mode = _line_mode(pedigree)
    if mode is None:
        return []
    data = ClassData(store, classes, number)
    first, second, times = pair_times(pedigree, individuals)
    try:
        sums, _ = sums_of_counts(lambda block: [data.block(block)], len(data), len(store.samples), LEAST_READS)
        pairs = pairs_of(sums, first, second, times, store.samples)
        share = pairs.unmethylated_share
        if not 0 < share < 1:
            raise ValueError(f"the share of unmethylated sites is {share:g}")
        assumptions = Assumptions(mode, share, share, 0.0)
        found = profile_ratio(times, pairs.divergence, assumptions, PROFILE_RATIOS, starts=PROFILE_STARTS, seed=seed)
    except (ValueError, UserError) as error:
        log.warning("class %s: no profile of the divergence estimator: %s", classes.names[number], error)
        return []
    rss = np.array([fit.rss for fit in found])
    below = 0.5 * len(pairs.divergence) * np.log(rss / rss.min())
    return [
        (float(ratio), fit.alpha, fit.beta, float(loss))
        for ratio, fit, loss in zip(PROFILE_RATIOS, found, below, strict=True)
    ]


def _line_mode(pedigree: Pedigree) -> str | None:
    """How all lines are propagated, None where there is more than one way or an individual with two parents."""
    try:
        return uniparental_mode(pedigree)
    except UserError:
        return None


def _depth(pedigree: Pedigree) -> int:
    """Generations from a founder to the individual furthest from it, by single parents."""
    depth = np.zeros(len(pedigree.individuals), dtype=np.int64)
    for index, mother in enumerate(pedigree.mother.tolist()):
        if mother >= 0:
            depth[index] = depth[mother] + pedigree.generations[index]
    return int(depth.max())
