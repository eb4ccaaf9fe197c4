# SPDX-License-Identifier: MIT
"""The rules drivers are audited by, as data: reads ``rules.toml``."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from harness.errors import BadInput

_RESOURCE: Final = "rules.toml"


class Observed(Enum):
    """How a breach of a rule shows."""

    #: Events of the DMA API suffice.
    LEDGER = "ledger"
    #: Only the machine shows it, from outside.
    ORACLE = "oracle"
    #: The ledger says where to look, the machine what is there.
    BOTH = "both"
    #: The kernel refuses before anything can be probed, and warns.
    LOG = "log"


class Points(Enum):
    """Which line a finding points at."""

    #: That of the call that showed the breach.
    CALL = "call"
    #: That of the call that made the buffer, mapping or block: the one that ends it is missing.
    MAKING = "making"


@dataclass(frozen=True)
class Rule:
    """What a driver has to do.

    Attributes:
        id: its name, ``above-mask``.
        sentence: what a driver has to do, or what has to be true of its buffers.
        why: what goes wrong otherwise, and where it does not show.
        read: what explains it; files of the kernel, each with a section or a function.
        observed: how a breach shows.
        points: at which line.
        limits: when a breach cannot be seen, ``""`` where there is nothing to say.
    """

    id: str
    sentence: str
    why: str
    read: str
    observed: Observed
    points: Points = Points.CALL
    limits: str = ""


@cache
def rules() -> Mapping[str, Rule]:
    """Every rule by its id, in the order of ``rules.toml``."""
    table = tomllib.loads(files("harness.audit").joinpath(_RESOURCE).read_text(encoding="utf-8"))["rule"]
    return MappingProxyType({name: _rule(name, entry) for name, entry in table.items()})


def rule(name: str) -> Rule:
    """Return one rule.

    Raises:
        BadInput: there is none of this id; the hint names one that is like it.
    """
    found = rules().get(name)
    if found is None:
        like = difflib.get_close_matches(name, rules(), n=1)
        raise BadInput(f"there is no rule {name}", hint=f"the nearest is {like[0]}" if like else "")
    return found


def _rule(name: str, entry: Mapping[str, str]) -> Rule:
    said = dict(entry)
    observed, points = Observed(said.pop("observed")), Points(said.pop("points", "call"))
    return Rule(id=name, observed=observed, points=points, **said)
