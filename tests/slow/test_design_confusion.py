"""What a design is said to show against what evidences of simulated loci show, on four pedigrees.

On the Gaussian scale reads are logits with known noise; in truth they are counts, at levels far from a half few of them
informative. The means of log Bayes factors must agree within that approximation, and so must which hypothesis is best.
"""

from __future__ import annotations

import numpy as np
import pytest
from design_cases import PEDIGREES, asked_of, families_of

from epivi.verify.design import Assumed, Evaluated, best_shares, predicted, separation
from epivi.verify.design_simulation import realized

pytestmark = pytest.mark.slow
LOCI = 600  # of each hypothesis
# The Gaussian scale may be off by a quarter of a mean log Bayes factor, and by .01 nats. Beyond are 4.5 standard errors
# of the simulation and of the prediction: one of 80 pairs fails a correct program with a probability of 5e-4.
RELATIVE, ABSOLUTE, ERRORS = 0.25, 0.01, 4.5


def log_bayes_factors(log_evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and its standard error, of the true hypothesis (rows) against each other one, [H, H]."""
    values = np.stack([of_truth[:, [h]] - of_truth for h, of_truth in enumerate(log_evidence)])
    return values.mean(1), values.std(1) / np.sqrt(values.shape[1])


def both(name: str) -> tuple[Assumed, Evaluated, Evaluated]:
    asked = asked_of(families_of(PEDIGREES[name], 4), levels=(0.1, 0.5, 0.9))
    *_, found = realized(asked, LOCI, nodes=64, seed=1, threads=1)
    assert isinstance(found, Evaluated)
    return asked, predicted(asked, 1), found


@pytest.mark.parametrize("name", PEDIGREES)
def test_predicted_and_realized_evidence(name: str) -> None:
    asked, expected, found = both(name)
    (mean, error), (seen, seen_error) = (log_bayes_factors(one.locus) for one in (expected, found))
    limit = RELATIVE * np.abs(mean) + ABSOLUTE + ERRORS * np.hypot(error, seen_error)
    print(name, "\npredicted\n", mean.round(3), "\nrealized\n", seen.round(3))
    assert (np.abs(seen - mean) < limit).all()
    # Without relatives they would be zero: the pedigree shows.
    assert seen[1, 0] > 5 * seen_error[1, 0]
    assert mean[1, 0] > 5 * error[1, 0]
    groups = separation(asked).groups
    shares = [best_shares(one.region, groups) for one in (expected, found)]
    print("best in a region\n", shares[0].round(2), "\nrealized\n", shares[1].round(2))
    # 60 regions of each hypothesis; a share moves by .1 on the logit scale where evidence is a quarter weaker.
    regions = found.region.shape[1]
    spread = np.sqrt(shares[0] * (1 - shares[0]) / regions)
    assert (np.abs(shares[1] - shares[0]) < ERRORS * spread + 0.12).all()


def test_extremes_of_methylation_say_less_than_the_middle() -> None:
    """A fact that the Gaussian scale must get right in size: reads at .95 weigh a fifth of those at .5."""
    nats = {}
    for level in (0.5, 0.95):
        asked = asked_of(families_of(PEDIGREES["3 generations, 7"], 3), levels=(level,))
        *_, found = realized(asked, LOCI, nodes=64, seed=2, threads=1)
        assert isinstance(found, Evaluated)
        nats[level] = [log_bayes_factors(one.locus)[0][1, 0] for one in (predicted(asked, 2), found)]
    assert nats[0.95][0] < 0.6 * nats[0.5][0]
    assert nats[0.95][1] < 0.6 * nats[0.5][1]
