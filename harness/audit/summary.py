# SPDX-License-Identifier: MIT
"""From a run to its result: every group of buffers with the rules it breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.audit.buffers import word_for
from harness.audit.events import Direction, Kind
from harness.audit.findings import Finding
from harness.audit.listing import Group, alive, key_of
from harness.audit.result import AuditResult, Blind, Judged

if TYPE_CHECKING:
    from harness.audit.run import AuditRun

_BY_COHERENT_MASK = (Kind.ALLOC, Kind.POOL_CREATE, Kind.POOL_ALLOC)


def summed_up(run: AuditRun, blind: tuple[Blind, ...]) -> AuditResult:
    """Return what came out of a run, as far as it has got."""
    found = run.found()
    return AuditResult(
        driver=run.name,
        source=run.subject.describe(),
        provenance=run.provenance,
        asked=run.asked,
        loaded=tuple(run.loaded),
        bound=tuple(run.devices),
        exercised=run.exercised,
        events=run.events,
        lost=run.lost,
        missed=run.missed,
        looks=run.observed.looks,
        judged=_judged(run, found),
        findings=tuple(found),
        complaints=run.complaints,
        blind=blind,
        failure=run.failure,
        seconds=run.seconds,
    )


def _judged(run: AuditRun, found: list[Finding]) -> tuple[Judged, ...]:
    book = run.book
    left = alive((*book.buffers, *book.mappings, *book.blocks, *book.pools.values()))
    broken: dict[str, set[str]] = {}
    for one in found:
        for site in filter(None, (one.site, one.made)):
            broken.setdefault(str(site), set()).add(one.rule.id)
    rows: dict[tuple[object, ...], Judged] = {}
    for group in run.listing.of(run.ours):
        row = _row(run, group, left.get(key_of(group.first), 0), broken)
        key = row.what, row.device, row.direction, row.site
        rows[key] = _joined(rows[key], row) if key in rows else row
    return tuple(rows.values())


def _row(run: AuditRun, group: Group, left: int, broken: dict[str, set[str]]) -> Judged:
    first = group.first
    site = str(run.sites.of(first, {run.name, *run.loaded}))
    coherent = first.kind in _BY_COHERENT_MASK
    direction = Direction.BIDIRECTIONAL if first.direction is Direction.UNSAID else first.direction
    return Judged(
        what=word_for(first.kind),
        device=first.name,
        driver=first.driver,
        direction=direction.name,
        site=site,
        calls=group.calls,
        failed=group.failed,
        alive=left,
        smallest=group.smallest,
        largest=group.largest,
        lowest=group.lowest,
        highest=group.highest,
        mask=first.coherent_mask if coherent else first.mask,
        rules=tuple(sorted(broken.get(site, ()))),
    )


def _joined(one: Judged, other: Judged) -> Judged:
    """Return what different stacks have made by the same line as one row."""
    good = [row for row in (one, other) if row.calls > row.failed]
    return Judged(
        what=one.what,
        device=one.device,
        driver=one.driver,
        direction=one.direction,
        site=one.site,
        calls=one.calls + other.calls,
        failed=one.failed + other.failed,
        alive=one.alive + other.alive,
        smallest=min((row.smallest for row in good), default=0),
        largest=max(one.largest, other.largest),
        lowest=min((row.lowest for row in good), default=0),
        highest=max(one.highest, other.highest),
        mask=one.mask,
        rules=tuple(sorted({*one.rules, *other.rules})),
    )
