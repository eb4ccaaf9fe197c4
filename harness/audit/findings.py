# SPDX-License-Identifier: MIT
"""Findings: what was wrong, told so that the driver's developer learns what to do about it."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from harness.audit.book import Violation
from harness.audit.events import Event
from harness.audit.rules import Points, Rule, rule
from harness.audit.sites import DRIVER_BYTES, Site, Sites
from harness.images.modules import canonical

_WIDTH: Final = 100
_LABEL: Final = 12
_NAME_BYTES: Final = 19  # of a device's name in a record: struct dma_ledger_record has room for no more
_EVIDENCE: Final = 3
"""Different pieces of evidence that a finding keeps; the others are counted."""


@dataclass(frozen=True)
class Finding:
    """One breach of one rule at one place, however often it came.

    Attributes:
        rule: the rule.
        driver: who broke it: the device's driver, or the module that works on top of it.
        device: names of the devices it happened with, or ``""``.
        module: whose code it is in, ``""`` where nobody knows.
        site: the line that has to change.
        made: where the buffer, mapping or block was made; None where that is unknown, or `site` itself.
        ended: where it had ended before, of what was used or ended once more.
        evidence: what was seen, with numbers; the first few that are different.
        count: how often.
        number: of the first event; -1 where only the kernel's log tells.
    """

    rule: Rule
    driver: str
    device: str
    module: str
    site: Site
    made: Site | None
    ended: Site | None
    evidence: tuple[str, ...]
    count: int
    number: int

    def render(self, *, stack: bool = True) -> str:
        """Return it for people, several lines.

        Args:
            stack: show the call stack as well.
        """
        rule = self.rule
        times = f" (seen {self.count} times)" if self.count > 1 else ""
        lines = [f"{rule.id}: {self.driver or self.module or 'the kernel'}, {self.site}{times}"]
        lines += [f"    {self.site.line:>6} | {self.site.text}"] if self.site.text else []
        rows = [("rule", rule.sentence)]
        if self.device:
            rows.append(("device", self.device))
        rows += [("seen", one) for one in self.evidence]
        rows += [("made at", str(self.made))] if self.made is not None else []
        rows += [("ended at", str(self.ended))] if self.ended is not None else []
        rows += [("why", rule.why), ("read", rule.read)]
        rows += [("limits", rule.limits)] if rule.limits else []
        for label, text in rows:
            indent = " " * (_LABEL + 2)
            lines += textwrap.wrap(
                text, _WIDTH, initial_indent=f"  {label:<{_LABEL}}", subsequent_indent=indent
            )
        if stack and self.site.stack:
            lines.append("  call stack")
            lines += [f"    {frame}" for frame in self.site.stack]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        return {
            "rule": self.rule.id,
            "sentence": self.rule.sentence,
            "why": self.rule.why,
            "read": self.rule.read,
            "limits": self.rule.limits,
            "driver": self.driver,
            "device": self.device,
            "module": self.module,
            "site": _plain(self.site),
            "made": _plain(self.made),
            "ended": _plain(self.ended),
            "evidence": list(self.evidence),
            "count": self.count,
            "event": self.number,
        }


def findings(
    violations: Iterable[Violation],
    sites: Sites,
    *,
    modules: Collection[str] | None = None,
    devices: Collection[str] | None = None,
) -> list[Finding]:
    """Name what is wrong: the same rule broken by the same driver at the same place is one finding.

    Args:
        violations: in any order.
        sites: has followed the events they are about.
        modules: those whose findings are wanted, or drivers that are built in; None: everybody's.
        devices: devices whose findings are wanted too, whoever the stack names; None: by modules alone.

    Returns:
        By the time of their first event.

    Raises:
        BadInput: a violation of a rule that nobody knows.
    """
    names = {name[:_NAME_BYTES] for name in devices or ()}
    cases: dict[object, _Case] = {}
    for violation in sorted(violations, key=lambda one: (one.event.time, one.event.number)):
        case = _case(violation, sites, modules)
        whose = case.site.module or canonical(case.driver)  # a driver can be built in
        if modules is not None and whose not in modules and case.device not in names:
            continue
        case = cases.setdefault((case.rule.id, case.driver, case.site), case)
        case.add(violation)
    return [case.finding() for case in cases.values()]


class _Case:
    """A finding while its violations come in."""

    def __init__(self, rule: Rule, about: Event, driver: str, site: Site) -> None:
        self.rule = rule
        self.driver = driver
        self.device = about.name
        self.site = site
        self.made: Site | None = None
        self.ended: Site | None = None
        self.number = 0
        self._devices: dict[str, None] = {}
        self._evidence: dict[str, None] = {}
        self._count = 0

    def add(self, violation: Violation) -> None:
        """Count one more."""
        if not self._count:
            self.number = violation.event.number
        self._count += 1
        self._devices[_about(violation).name] = None
        self._evidence[violation.evidence] = None

    def finding(self) -> Finding:
        """Return it, complete."""
        evidence = list(self._evidence)
        more = len(evidence) - _EVIDENCE
        told = [*evidence[:_EVIDENCE], *([f"and {more} more of the kind"] if more > 0 else [])]
        devices = ", ".join(filter(None, self._devices))
        return Finding(
            rule=self.rule,
            driver=self.driver,
            device=devices,
            module=self.site.module,
            site=self.site,
            made=self.made,
            ended=self.ended,
            evidence=tuple(told),
            count=self._count,
            number=self.number,
        )


def _about(violation: Violation) -> Event:
    """Return the call that names the device: a module that goes names none."""
    made = violation.entry.made if violation.entry is not None else violation.event
    return violation.event if violation.event.device else made


def _case(violation: Violation, sites: Sites, modules: Collection[str] | None) -> _Case:
    which, event, entry = rule(violation.rule), violation.event, violation.entry
    about = _about(violation)
    made = sites.of(entry.made, modules) if entry is not None else None
    ended = None
    if violation.place:
        site = sites.at(violation.place, event.driver, modules)
    elif made is not None and (which.points is Points.MAKING or not event.stack):
        site, made = made, None
    else:
        site = sites.of(event, modules)
    if entry is not None and entry.ended is not None and entry.ended.number < event.number:
        ended = sites.of(entry.ended, modules)
    case = _Case(which, about, _driver(about, site), site)
    case.made, case.ended = made if made != site else None, ended
    return case


def _driver(about: Event, site: Site) -> str:
    """Return who is to blame: the device's driver, unless another module works with its device."""
    if not site.module:
        return about.driver
    # A record has not room for every name.
    same = canonical(about.driver) == site.module[:DRIVER_BYTES] and len(site.module) <= DRIVER_BYTES
    return about.driver if same else site.module


def _plain(site: Site | None) -> dict[str, Any] | None:
    if site is None:
        return None
    return {
        "name": str(site),
        "module": site.module,
        "function": site.function,
        "offset": site.offset,
        "file": site.file,
        "line": site.line,
        "inlined": site.inlined,
        "perhaps": list(site.perhaps),
        "through": site.through,
        "source": site.text,
        "stack": list(site.stack),
    }
