"""Model families: the Pyro model of a family is the only definition of its density.

This registry is read by the configuration too, so that nothing here may import torch before it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping

from epivi.families.epimutation import EpimutationFamily
from epivi.families.transmission import TransmissionFamily
from epivi.models.family import Family

FAMILIES: Mapping[str, Family] = {
    "transmission": TransmissionFamily(),
    "epimutation": EpimutationFamily(),
}
