"""Where to integrate over theta at loci for which no guide was fitted: proposals adapted to each locus by itself.

Adaptive importance sampling (Cappe, Guillin, Marin and Robert 2004): the nodes of a coarse lattice are weighted by the
corrected-Laplace evidence, their weighted mean and covariance make the next Gaussian, from the prior to the posterior
in a few rounds. The evidence is then integrated around the last one, with its own nodes, as around a guide's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from epivi.families.transmission.density import Batch, Hyperparameters, LearnedPriors
from epivi.families.transmission.hypotheses import Hypothesis, NormalPrior
from epivi.families.transmission.outer_integral import (
    PROPOSAL_INFLATION,
    EvidenceModel,
    HypothesisEvidence,
    OuterProposal,
    evidence_model,
    hypothesis_evidence,
    lattice_nodes,
    nodes_for,
    place_nodes,
    prior_of,
)
from epivi.field.layout import Cohort
from epivi.fit.gaussian import GaussianTheta

Array = NDArray[np.float64]

# METHOD: at 12 individuals one round leaves errors up to .13 nats against dense quadrature, two leave .015, three .010,
# where a proposal off by a third of a posterior SD leaves .008 (120 loci, six hypotheses: test_evidence.py of the tests
# of this folder).
ROUNDS = 3
COARSE_NODES = 64  # of a round, as `nodes_for` takes it: half of them below three dimensions
# METHOD: weights are flattened, by the largest of these powers that leaves ENOUGH_NODES effective nodes for each
# coordinate: a covariance of fewer would be too narrow, and the next round could not find its way back.
POWERS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
ENOUGH_NODES = 3.0
SMALLEST_SD = 0.1  # of the prior's, of any coordinate


class WeightedTheta(NamedTuple):
    """Nodes of L loci with normalized weights."""

    theta: Array  # [L, J, D]
    weight: Array  # [L, J]

    def moments(self) -> tuple[Array, Array]:
        """Mean [L, D] and covariance [L, D, D]."""
        mean = np.einsum("lj,ljd->ld", self.weight, self.theta)
        offset = self.theta - mean[:, None]
        return mean, np.einsum("lj,ljd,lje->lde", self.weight, offset, offset)


def adapting_model(
    cohort: Cohort,
    hypotheses: tuple[Hypothesis, ...],
    learned: LearnedPriors,
    share_priors: dict[str, NormalPrior],
    seed: int,
) -> EvidenceModel:
    """What the integrals need where no guide was fitted."""

    def propose(batch: Batch, hyper: Hyperparameters) -> tuple[GaussianTheta, ...]:
        return adapted_proposals(model, seed, batch)

    model = evidence_model(cohort, hypotheses, learned, share_priors, propose)
    return model


def adapted_proposals(model: EvidenceModel, seed: int, batch: Batch) -> tuple[GaussianTheta, ...]:
    """A Gaussian over theta [L, D] of every hypothesis, in place of what a guide says.

    A locus's depends on its counts, its number and the seed alone. `model.encoder` is not used.
    """
    meth, total = (counts.cpu().numpy().astype(np.uint16) for counts in (batch.meth, batch.total))
    loci = batch.locus.cpu().numpy()
    proposals = (adapted_proposal(model, index, meth, total, loci, seed) for index in range(len(model.hypotheses)))
    return tuple(GaussianTheta(torch.as_tensor(one.mean), torch.as_tensor(one.scale_tril)) for one in proposals)


def adapted_proposal(
    model: EvidenceModel, index: int, meth: NDArray[np.uint16], total: NDArray[np.uint16], loci: NDArray[np.int64],
    seed: int,
) -> OuterProposal:  # fmt: skip
    """The proposal of hypothesis `index` at L loci: meth, total [L, S]; loci [L], their numbers."""
    proposal = prior_proposal(model, index, len(loci))
    floor = (SMALLEST_SD * _prior_sds(model, index)) ** 2
    for number in range(ROUNDS):
        # Shifts of their own: the nodes of the evidence must not depend on the counts.
        nodes = weighted_theta(model, index, proposal, meth, total, loci, seed + 1 + number)[0]
        mean, covariance = _flattened(nodes).moments()
        scale = np.linalg.cholesky(covariance + floor * np.eye(len(floor)))
        proposal = OuterProposal(mean, scale.astype(np.float64))
    return proposal


def prior_proposal(model: EvidenceModel, index: int, loci: int) -> OuterProposal:
    """The prior, whose nodes are spread by the SD that it has: half of it, which `place_nodes` doubles."""
    mean = np.array([prior_of(model, name).mean for name in model.hypotheses[index].prior_names])
    scale = np.diag(_prior_sds(model, index) / PROPOSAL_INFLATION)
    return OuterProposal(np.tile(mean, (loci, 1)), np.tile(scale, (loci, 1, 1)))


def weighted_theta(
    model: EvidenceModel, index: int, proposal: OuterProposal, meth: NDArray[np.uint16], total: NDArray[np.uint16],
    loci: NDArray[np.int64], seed: int,
) -> tuple[WeightedTheta, HypothesisEvidence]:  # fmt: skip
    """The posterior of theta on the nodes of a round, and the evidence that goes with it."""
    hypothesis = model.hypotheses[index]
    found = hypothesis_evidence(model, index, proposal, meth, total, loci, COARSE_NODES, seed)
    dimensions = len(hypothesis.parameters)
    z = lattice_nodes(loci, dimensions, nodes_for(dimensions, COARSE_NODES), seed)
    theta, _ = place_nodes(model, hypothesis, proposal, z)
    return WeightedTheta(theta[:, 1:], found.node_weight), found


def _prior_sds(model: EvidenceModel, index: int) -> Array:
    return np.array([prior_of(model, name).sd for name in model.hypotheses[index].prior_names])


def _flattened(nodes: WeightedTheta) -> WeightedTheta:
    """The weights of each locus to the largest of POWERS that leaves nodes enough."""
    powers = np.array(POWERS)[:, None, None]
    weight = np.maximum(np.nan_to_num(nodes.weight), 1e-300) ** powers  # [powers, L, J]
    weight /= weight.sum(2, keepdims=True)
    is_enough = 1 / (weight**2).sum(2) >= ENOUGH_NODES * nodes.theta.shape[2]
    is_enough[-1] = True
    chosen = is_enough.argmax(0)
    return nodes._replace(weight=weight[chosen, np.arange(len(chosen))])
