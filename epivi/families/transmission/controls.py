"""Evidences of a sample of loci under a broken pedigree, without one family, and under other priors of the shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.cohort.haplotypes import sampled_units
from epivi.cohort.kinship import family_members
from epivi.cohort.permutations import EXCHANGES, exchanged
from epivi.config.load import Config
from epivi.families.transmission.cohort import COVARIANCES, Sampled, build_cohort
from epivi.families.transmission.hypotheses import logit_normal
from epivi.families.transmission.outer_integral import build_evidence_model
from epivi.families.transmission.prepare import TransmissionProblem
from epivi.families.transmission.refinement import evaluate_batch
from epivi.fit.folder import Fitted, device_of
from epivi.loci.source import CountsBatch

# METHOD: shapes of Beta priors of the heritable share beside the configured one. They are set and never learned, so
# that the weights are shown over a range of them.
OTHER_SHARES = {"small shares": (1.0, 3.0), "any share": (1.0, 1.0), "large shares": (3.0, 1.0)}


class Variant(NamedTuple):
    """The problem with one thing changed; S samples."""

    control: str  # true, one of EXCHANGES, without_family or prior
    number: int
    detail: str
    problem: TransmissionProblem
    is_counted: NDArray[np.bool_]  # [S], samples whose reads count
    is_changed: bool  # whether evidences can differ from those of the true problem at the same level
    is_refined: bool  # whether evidences are what `epivi evidence` finds; else all are of the first level


def variants(problem: TransmissionProblem, config: Config, seed: int) -> Iterator[Variant]:
    """The true problem first, then the controls; exchanges in an order that does not depend on how many there are.

    # METHOD: controls are compared over all loci, to which the refinement of single loci adds nothing: of
    # 2,000 loci in 36 individuals it moved log Bayes factors by .0005 nats on average, gains by .5 of 153 nats, and
    # none of the shares beyond an lfdr by more than a locus; at 60 individuals by .0005, with individuals exchanged and
    # as they are. It takes most of the time, as the fit's proposals do not
    # know exchanged pedigrees. The true problem stands at both levels.
    """
    settings = config.section("controls")
    everyone = np.ones(len(problem.sheet.samples), dtype=bool)
    yield Variant("true", 0, "refined", problem, everyone, True, True)
    yield Variant("true", 1, "first level", problem, everyone, True, False)
    covariates = config.section("model")["covariates"]
    structure = _structure(problem)
    for kind, exchange in enumerate(EXCHANGES):
        for number in range(1, settings["permutations"] + 1):
            random = np.random.default_rng([seed, 6, kind, number])
            sheet = exchanged(problem.sheet, problem.pedigree, exchange, settings["exchange_within"], random)
            changed = problem._replace(sheet=sheet)
            is_changed = not np.array_equal(_structure(changed), structure)
            if is_changed:
                cohort = build_cohort(sheet, problem.pedigree, covariates, problem.hypotheses)
                changed = changed._replace(cohort=cohort)
            yield Variant(exchange, number, "", changed, everyone, is_changed, False)
    for number, members in enumerate(family_members(problem.pedigree, problem.sheet.individuals), 1):
        is_counted = ~np.isin(problem.sheet.individuals, list(members))
        yield Variant("without_family", number, ", ".join(members), problem, is_counted, True, False)
    for number, (detail, shapes) in enumerate(OTHER_SHARES.items(), 1):
        priors = problem.priors | {"logit_heritable_share": logit_normal(*shapes)}
        yield Variant("prior", number, detail, problem._replace(priors=priors), everyone, True, False)


def log_evidences(
    variant: Variant, fitted: Fitted, config: Config, counts: CountsBatch, threads: int
) -> NDArray[np.float64]:
    """Log evidences [L, H] of a variant, by the network that was fitted to the true problem."""
    problem, settings = variant.problem, config.section("evidence")
    model = build_evidence_model(
        problem.cohort, problem.hypotheses, fitted.learned, problem.priors, fitted.encoder_state, fitted.hidden,
        device_of(settings["device"], "evidence"), trained_at=fitted.trained_at,
    )  # fmt: skip
    meth, total = (np.where(variant.is_counted, x, 0).astype(np.uint16) for x in (counts.meth, counts.total))
    found = evaluate_batch(
        model, meth, total, counts.locus, settings["nodes"], config.seed("evidence"), threads,
        is_refined=variant.is_refined,
    )  # fmt: skip
    return np.stack([evidence.log_evidence for evidence in found], axis=1)


def _structure(problem: TransmissionProblem) -> NDArray[np.float64]:
    """What each two samples share by every component: equal for exchanges that change nothing."""
    units, of_sample = sampled_units(problem.sheet)
    sampled = Sampled(problem.sheet, problem.pedigree, units, of_sample)
    pairs = np.ix_(of_sample, of_sample)
    shared = [
        COVARIANCES[component.kind](component, hypothesis, sampled)[pairs].ravel()
        for hypothesis in problem.hypotheses
        for component in hypothesis.components
    ]
    return np.concatenate([*shared, np.zeros(0)])
