"""What a model family does at each step of the workflow, one module a family.

The commands read this registry for their --help too, so that nothing here may import torch before it is needed. What a
family's part of the configuration may say is in epivi.declarations.
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
