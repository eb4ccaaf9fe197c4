# SPDX-License-Identifier: MIT
"""Findings out of violations: whose, where, how often, and what a reader is told."""

from harness.audit import Book, Event, Kind, Sites, findings, rule

BUS, DEV = 0x10_0000, 0x100


def module(kind, name="ring", **fields):
    return {"kind": kind, "module": name, "virtual": 0xFFFF_FFFF_C000_0000, "size": 0x2000, **fields}


def alloc(**fields):
    return {"kind": Kind.ALLOC, "bus": BUS, "size": 4096, "device": DEV, "driver": "ring", **fields}


def free(**fields):
    return {**alloc(**fields), "kind": Kind.FREE, "time": 9}


def found(*rows, **chosen):
    events = [Event(number=number, **row) for number, row in enumerate(rows)]
    book, sites = Book(), Sites({}.get)
    book.replay(events)
    sites.follow(events)
    return findings(book.violations, sites, **chosen)


COMING = module(Kind.MODULE_COMING)
WHERE = {"stack": (0xFFFF_FFFF_C000_0100,), "module": "ring", "name": "ring.0"}
ELSEWHERE = {**WHERE, "stack": (0xFFFF_FFFF_C000_0200,)}


def test_a_freed_size():
    (one,) = found(COMING, alloc(**WHERE), free(**ELSEWHERE) | {"size": 1})
    assert (one.rule, one.driver, one.device, one.module) == (rule("free-size"), "ring", "ring.0", "ring")
    assert one.evidence == ("4096 bytes freed as 1",)
    assert (one.count, one.number) == (1, 2)
    assert str(one.site) == "0xffffffffc0000200 [ring]"
    assert one.made is not None
    assert str(one.made) == "0xffffffffc0000100 [ring]"
