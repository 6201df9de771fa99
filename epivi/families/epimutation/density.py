"""The family `epimutation`: counts along a lineage whose states UU, UM and MM change by gain and loss.

For locus l of class c, with x the states of all nodes of the lineage, summed out exactly (epivi.lineage):

    x_founder ~ founder_c,    x_child ~ T(. | parents; alpha_l, beta_l, log fitness s_l)
    meth_ls ~ BetaBinomial(total_ls, level_c[x], dispersion_c),    level_c = (eps0_c, 1/2, 1 - eps1_c)

A hypothesis says whether alpha_l and beta_l are 0, those of the class, or vary around them,

    logit alpha_l ~ N(logit alpha_c, rate_sd^2),    logit beta_l ~ N(logit beta_c, rate_sd^2)

and whether s_l is 0, given, free ~ N(0, fitness_sd^2), or of a given sign with log |s_l| ~ N(log fitness_sd, .75^2).

# METHOD: what the loci of a class share is not learned here but before, from all of them under shared rates
# (epivi.lineage.rates), and held fixed: learned together with the weights of the hypotheses, the rates would trade
# off with the weight of `stable`, since few changes at many loci look like many changes at few.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from epivi.families.epimutation.hypotheses import SIGNS, EpimutationHypothesis, EpimutationPriors
from epivi.lineage.elimination import EliminationPlan
from epivi.lineage.emission import LineageEmission, collect_pairs, encode, log_probability
from epivi.lineage.likelihood import EpimutationRates, log_likelihood, sum_samples
from epivi.loci.source import CountsBatch


class LearnedStates(NamedTuple):
    """What all loci of each of C classes share, and the weights of H hypotheses as the stochastic fit sees them."""

    alpha: NDArray[np.float64]  # [C], gains per copy and generation
    beta: NDArray[np.float64]  # [C], losses
    founder: NDArray[np.float64]  # [C, 3], proportions of UU, UM and MM
    false_methylated: NDArray[np.float64]  # [C], eps0
    false_unmethylated: NDArray[np.float64]  # [C], eps1
    dispersion: NDArray[np.float64]  # [C]
    hypothesis_weights: NDArray[np.float64]  # [H]


class EpimutationBatch(NamedTuple):
    """A minibatch of B loci of a lineage with N nodes."""

    log_emission: Tensor  # [N, 3, B], of the reads of each node's samples
    coverage: Tensor  # [B], reads over all samples
    methylated: Tensor  # [B], methylated share of them
    class_code: Tensor  # [B], number of the class
    locus: Tensor  # [B], number in the genome
    n_loci: int


class Weights(nn.Module):
    """The hyper-parameters of the stochastic fit: weights of the hypotheses."""

    def __init__(self, hypotheses: int) -> None:
        super().__init__()
        self.hypothesis_logits = nn.Parameter(torch.zeros(hypotheses))

    def log_weights(self) -> Tensor:
        """Log weights [H], normalized."""
        return torch.log_softmax(self.hypothesis_logits, dim=0)


class EpimutationModel(NamedTuple):
    """The family for one cohort: everything that the model function needs besides the data."""

    plan: EliminationPlan
    hypotheses: tuple[EpimutationHypothesis, ...]
    priors: EpimutationPriors
    class_logits: Tensor  # [C, 2], logit alpha and logit beta
    founder: Tensor  # [C, 3]

    def density(self, hyper: Weights, hypothesis: int, batch: EpimutationBatch) -> None:
        """`epimutation` of this cohort."""
        epimutation(self, hypothesis, batch)


def build_epimutation(
    plan: EliminationPlan,
    hypotheses: tuple[EpimutationHypothesis, ...],
    priors: EpimutationPriors,
    learned: LearnedStates,
    device: torch.device,
    dtype: torch.dtype,
) -> EpimutationModel:
    """The family's tensors."""
    rates = torch.as_tensor(np.stack([learned.alpha, learned.beta], 1), dtype=dtype, device=device)
    founder = torch.as_tensor(learned.founder, dtype=dtype, device=device)
    return EpimutationModel(plan, hypotheses, priors, torch.logit(rates), founder)


def epimutation_batch(
    plan: EliminationPlan,
    learned: LearnedStates,
    counts: CountsBatch,
    class_code: NDArray[np.int16],
    n_loci: int,
    device: torch.device,
    dtype: torch.dtype,
) -> EpimutationBatch:
    """What the model sees of the counts of B loci of classes `class_code` [B]."""
    pairs = collect_pairs([(counts.meth, counts.total)])
    emission = LineageEmission(
        *(torch.as_tensor(x) for x in (learned.false_methylated, learned.false_unmethylated, learned.dispersion))
    )
    table = log_probability(emission, torch.as_tensor(pairs.meth), torch.as_tensor(pairs.total))  # [C, K, 3]
    reads = torch.as_tensor(encode(pairs, counts.meth, counts.total).astype(np.int64))  # [S, B]
    code = torch.as_tensor(class_code.astype(np.int64))
    log_emission = sum_samples(plan, table[code, reads].movedim(-1, 1))
    coverage = torch.as_tensor(counts.total.sum(1, dtype=np.int64)).to(dtype)
    methylated = torch.as_tensor(counts.meth.sum(1, dtype=np.int64)).to(dtype) / coverage.clamp_min(1.0)
    return EpimutationBatch(
        log_emission.to(device, dtype),
        coverage.to(device),
        methylated.to(device),
        code.to(device),
        torch.as_tensor(counts.locus, device=device),
        n_loci,
    )


def prior_moments(family: EpimutationModel, hypothesis: int, class_code: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and SD, [B, D] each, of the Gaussian prior of the parameters of a hypothesis at loci of these classes."""
    logits = family.class_logits[class_code]
    means, sds = [logits.new_zeros(len(class_code), 0)], [logits.new_zeros(len(class_code), 0)]
    for name in family.hypotheses[hypothesis].parameters:
        prior = family.priors.prior(name)
        centre = _centre(logits, name)
        means.append(centre + prior.mean)
        sds.append(torch.full_like(centre, prior.sd))
    return torch.cat(means, 1), torch.cat(sds, 1)


def _centre(logits: Tensor, name: str) -> Tensor:
    """What the class adds to the prior mean of a parameter, [B, 1]."""
    rates = ("logit_gain", "logit_loss")
    return logits[:, [rates.index(name)]] if name in rates else torch.zeros_like(logits[:, :1])


def locus_rates(
    family: EpimutationModel, hypothesis: EpimutationHypothesis, theta: dict[str, Tensor], class_code: Tensor
) -> EpimutationRates:
    """Rates, founder's proportions and fitness of each locus under a hypothesis, shapes [B] and [B, 3]."""
    class_rates = torch.sigmoid(family.class_logits[class_code])
    alpha, beta = class_rates[:, 0], class_rates[:, 1]
    if hypothesis.rates == "none":
        alpha, beta = torch.zeros_like(alpha), torch.zeros_like(beta)
    elif hypothesis.rates == "locus":
        alpha, beta = torch.sigmoid(theta["logit_gain"]), torch.sigmoid(theta["logit_loss"])
    return EpimutationRates(alpha, beta, family.founder[class_code], log_fitness(hypothesis, theta, alpha))


def log_fitness(hypothesis: EpimutationHypothesis, theta: dict[str, Tensor], like: Tensor) -> Tensor | None:
    """Log fitness of one more methylated copy under a hypothesis, of the shape of `like`; None without selection."""
    if hypothesis.selection is None:
        return None
    if hypothesis.selection == "free":
        return theta["log_fitness"]
    if hypothesis.selection in SIGNS:
        return SIGNS[hypothesis.selection] * torch.exp(theta["log_size"])
    return torch.full_like(like, float(hypothesis.selection))


def epimutation(family: EpimutationModel, hypothesis: int, batch: EpimutationBatch) -> None:
    """The Pyro model of one hypothesis over a minibatch of loci: the only definition of its density."""
    declared = family.hypotheses[hypothesis]
    with pyro.plate("loci", batch.n_loci, subsample=batch.locus):
        mean, sd = prior_moments(family, hypothesis, batch.class_code)
        theta = {
            name: pyro.sample(name, dist.Normal(mean[:, k], sd[:, k]))  # [B]
            for k, name in enumerate(declared.parameters)
        }
        rates = locus_rates(family, declared, theta, batch.class_code)
        pyro.factor("reads", log_likelihood(family.plan, rates, batch.log_emission))  # [B], all states summed out
