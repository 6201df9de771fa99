"""The `transmission` family: a quantitative methylation logit that a pedigree passes on.

For locus l under hypothesis h, with theta the free parameters of epivi.families.transmission.hypotheses:

    baseline_l            ~ mixture of K Gaussians                    learned weights, means, SDs
    effects_l             ~ N(0, effect_sd^2)                         learned SD of each covariate column
    locus_effects_l       ~ N(0, locus_effect_sd^2)                   of columns z_ls that differ by locus, set SDs
    log_spread_l          ~ N(spread_location, spread_scale^2)        learned
    logit_<component>_share, logit_transmissibility ~ set logit-normal priors
    b_l | theta           ~ N(0, v_1 A_1(tau) + ... + v_C A_C(tau) + v_residual I), sigma^2 divided by the shares
    y_ls                  = x_s' beta_l + z_ls' locus_effects_l + b_l,i(s)
    m_ls                  ~ Binomial(n_ls, eps_s + (1 - eps_s - delta_s) sigmoid(y_ls))

Dimensions: B loci of the minibatch, S samples, F blocks of one size n, P effects with the intercept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from epivi.families.transmission.components import divide
from epivi.families.transmission.hypotheses import TRANSMISSIBILITY, Hypothesis, NormalPrior
from epivi.families.transmission.likelihood import MethylationCounts
from epivi.field.layout import Cohort
from epivi.field.torch.prior import FieldTensors, Theta, field_tensors, prior_factor
from epivi.loci.source import CountsBatch

FIT_DTYPE = torch.float32


class Batch(NamedTuple):
    """A minibatch of loci; `locus` are the loci's numbers among all `n_loci` that the plate stands for."""

    meth: Tensor  # [B, S]
    total: Tensor  # [B, S]
    log_binomial: Tensor  # [B, S]
    locus: Tensor  # [B] int64
    n_loci: int
    locus_design: Tensor | None = None  # [B, S, G], covariates whose values differ between loci, `centred`
    locus_effect_sds: Tensor | None = None  # [G], of their effects


class Hyperparameters(nn.Module):
    """What all loci share and the fit learns; K baseline components, C covariate columns, H hypotheses."""

    def __init__(self, baseline_components: int, covariates: int, hypotheses: int) -> None:
        super().__init__()
        self.baseline_logits = nn.Parameter(torch.zeros(baseline_components))
        self.baseline_means = nn.Parameter(torch.linspace(-3.0, 3.0, baseline_components))
        self.baseline_log_sds = nn.Parameter(torch.zeros(baseline_components))
        self.spread_location = nn.Parameter(torch.zeros(()))
        self.spread_log_scale = nn.Parameter(torch.full((), -0.7))
        self.effect_log_sds = nn.Parameter(torch.full((covariates,), -1.0))
        self.hypothesis_logits = nn.Parameter(torch.zeros(hypotheses))

    @classmethod
    def restored(cls, learned: LearnedPriors) -> Hyperparameters:
        """The module with given values, in double precision."""
        module = cls(len(learned.baseline_weights), len(learned.effect_sds), len(learned.hypothesis_weights)).double()
        values = {
            "baseline_logits": np.log(learned.baseline_weights),
            "baseline_means": learned.baseline_means,
            "baseline_log_sds": np.log(learned.baseline_sds),
            "spread_location": learned.spread_location,
            "spread_log_scale": np.log(learned.spread_scale),
            "effect_log_sds": np.log(learned.effect_sds),
            "hypothesis_logits": np.log(learned.hypothesis_weights),
        }
        module.load_state_dict({name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()})
        return module

    def baseline(self) -> dist.TorchDistribution:
        return dist.MixtureSameFamily(
            dist.Categorical(logits=self.baseline_logits),
            dist.Normal(self.baseline_means, self.baseline_log_sds.exp()),
            validate_args=False,
        )

    def log_weights(self) -> Tensor:
        return torch.log_softmax(self.hypothesis_logits, dim=0)


class LearnedPriors(NamedTuple):
    """The fitted hyper-parameters as plain arrays, for everything after the fit."""

    baseline_weights: np.ndarray  # [K]
    baseline_means: np.ndarray  # [K], logit
    baseline_sds: np.ndarray  # [K], logit
    spread_location: float  # log
    spread_scale: float
    effect_sds: np.ndarray  # [C]
    hypothesis_weights: np.ndarray  # [H], as the fit has them; `compare` estimates the reported ones

    @classmethod
    def of(cls, module: Hyperparameters) -> LearnedPriors:
        def numpy(tensor: Tensor) -> np.ndarray:
            return tensor.detach().cpu().double().numpy()

        return cls(
            numpy(softmax(module.baseline_logits, dim=0)),
            numpy(module.baseline_means),
            numpy(module.baseline_log_sds.exp()),
            module.spread_location.item(),
            module.spread_log_scale.exp().item(),
            numpy(module.effect_log_sds.exp()),
            numpy(module.log_weights().exp()),
        )


class TransmissionModel(NamedTuple):
    """The family for one cohort: everything that the model function needs besides the data."""

    hypotheses: tuple[Hypothesis, ...]
    fields: tuple[FieldTensors, ...]
    priors: Mapping[str, NormalPrior]
    false_methylated: Tensor  # [S]
    false_unmethylated: Tensor  # [S]

    def density(self, hyper: Hyperparameters, hypothesis: int, batch: Batch) -> None:
        """`transmission` of this cohort."""
        transmission(self, hyper, hypothesis, batch)


def build_transmission(
    cohort: Cohort,
    hypotheses: Sequence[Hypothesis],
    priors: Mapping[str, NormalPrior],
    device: torch.device,
    dtype: torch.dtype,
) -> TransmissionModel:
    """The family's tensors; single precision is enough for the fit, double for checks of the density."""
    return TransmissionModel(
        tuple(hypotheses),
        tuple(field_tensors(field, device, dtype) for field in cohort.fields),
        dict(priors),
        torch.as_tensor(cohort.false_methylated, dtype=dtype, device=device),
        torch.as_tensor(cohort.false_unmethylated, dtype=dtype, device=device),
    )


def transmission(family: TransmissionModel, hyper: Hyperparameters, hypothesis: int, batch: Batch) -> None:
    """The Pyro model of one hypothesis over a minibatch of loci: the only definition of its density."""
    declared, field = family.hypotheses[hypothesis], family.fields[hypothesis]
    with pyro.plate("loci", batch.n_loci, subsample=batch.locus):
        size = len(batch.locus)
        beta = [pyro.sample("baseline", hyper.baseline().expand([size]))]  # [B]
        if len(field.design_column) > 0:
            sds = hyper.effect_log_sds[field.design_column].exp()
            effects = pyro.sample("effects", dist.Normal(0.0, sds).expand([size, len(sds)]).to_event(1))  # [B, P-1]
            beta.append(effects)
        parameters = {
            "log_spread": pyro.sample(
                "log_spread",
                dist.Normal(  # [B]
                    hyper.spread_location, hyper.spread_log_scale.exp()
                ).expand([size]),
            )
        }
        for name, prior_name in zip(declared.parameters[1:], declared.prior_names[1:], strict=True):
            prior = family.priors[prior_name]
            location = batch.meth.new_full((size,), prior.mean)
            parameters[name] = pyro.sample(name, dist.Normal(location, prior.sd))  # [B]
        theta = variance_components(declared, parameters)
        b = []
        for k, group in enumerate(field.groups):
            factor = prior_factor(group, theta)
            zero = factor.new_zeros(factor.shape[:-1])
            b.append(pyro.sample(f"field_{k}", dist.MultivariateNormal(zero, scale_tril=factor).to_event(1)))  # [B|F,n]
        logit = linear_predictor(field, beta, b)
        if batch.locus_design is not None and batch.locus_effect_sds is not None:
            sds = batch.locus_effect_sds
            own = pyro.sample("locus_effects", dist.Normal(0.0, sds).expand([size, len(sds)]).to_event(1))  # [B, G]
            logit = logit + (batch.locus_design @ own[:, :, None])[:, :, 0]
        counts = MethylationCounts(
            batch.total, logit, family.false_methylated, family.false_unmethylated, batch.log_binomial
        )
        pyro.sample("meth", counts.to_event(1), obs=batch.meth)  # [B|S]


def variance_components(hypothesis: Hypothesis, parameters: Mapping[str, Tensor]) -> Theta:
    """Divide sigma^2 [B] among the hypothesis's components."""
    variance = torch.exp(2 * parameters["log_spread"])
    parts = torch.stack([variance * part for part in divide(hypothesis, parameters, torch.sigmoid)], dim=-1)
    has_tau = hypothesis.has_free_transmissibility
    return Theta(parts, torch.sigmoid(parameters[TRANSMISSIBILITY]) if has_tau else torch.zeros_like(variance))


def linear_predictor(field: FieldTensors, beta: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """x_s' beta + b_i(s), [B, S]; beta is the baseline [B] and, with covariates, the effects [B, P - 1]."""
    fixed = beta[0][:, None]
    if len(beta) > 1:
        fixed = fixed + beta[1] @ field.design[:, 1:].T
    latents = torch.cat([part.flatten(1) for part in b], dim=1)
    return fixed + latents[:, field.latent_of_sample]


def to_batch(counts: CountsBatch, n_loci: int, device: torch.device, dtype: torch.dtype = FIT_DTYPE) -> Batch:
    """Counts as tensors, with the log binomial coefficients."""
    meth, total = (torch.as_tensor(x.astype("float64")).to(device) for x in (counts.meth, counts.total))
    log_binomial = torch.lgamma(total + 1) - torch.lgamma(meth + 1) - torch.lgamma(total - meth + 1)
    meth, total, log_binomial = (x.to(dtype) for x in (meth, total, log_binomial))
    return Batch(meth, total, log_binomial, torch.as_tensor(counts.locus, device=device), n_loci)
