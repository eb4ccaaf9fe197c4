# SPDX-License-Identifier: MIT
"""Findings out of violations: whose, where, how often, and what a reader is told."""

import json

import pytest

from harness.audit import Book, Event, Kind, Observed, Points, Sites, Violation, findings, rule, rules
from harness.audit.live import Entry
from harness.errors import BadInput
from harness.forensics import Frame

BUS, DEV = 0x10_0000, 0x100
TEXT = 0xFFFF_FFFF_C000_0000


def coming(name="ring", base=TEXT):
    return {"kind": Kind.MODULE_COMING, "module": name, "virtual": base, "size": 0x2000}


def going(name="ring"):
    return {"kind": Kind.MODULE_GOING, "module": name, "virtual": TEXT, "size": 0x2000}


def call(kind, at=0x100, **fields):
    made = {"bus": BUS, "virtual": BUS, "size": 4096, "device": DEV}
    made |= {"driver": "ring", "module": "ring", "name": "ring.0"}
    return {"kind": kind, "stack": (TEXT + at,), **made, **fields}


def alloc(at=0x100, **fields):
    return call(Kind.ALLOC, at, **fields)


def free(at=0x200, **fields):
    return call(Kind.FREE, at, **fields)


def place(at, name="ring"):
    return f"{TEXT + at:#x} [{name}]"


def found(*rows, **chosen):
    events = [Event(number=number, **row) for number, row in enumerate(rows)]
    book, sites = Book(), Sites({}.get)
    book.replay(events)
    sites.follow(events)
    return findings(book.violations, sites, **chosen)


def test_the_call_that_was_wrong_and_the_one_that_made_it():
    (one,) = found(coming(), alloc(), free(size=1))
    assert (one.rule, one.driver, one.device, one.module) == (rule("free-size"), "ring", "ring.0", "ring")
    assert (str(one.site), str(one.made), one.ended) == (place(0x200), place(0x100), None)
    assert (one.evidence, one.count, one.number) == (("4096 bytes freed as 1",), 1, 2)


def test_what_is_left_is_found_where_it_was_made():
    (one,) = found(coming(), alloc(), going())
    assert one.rule.points is Points.MAKING
    assert (str(one.site), one.made, one.device) == (place(0x100), None, "ring.0")
    assert one.number == 2  # the leak shows when the module goes


def test_what_is_missing_its_end_is_found_where_it_was_made():
    rows = [coming(), call(Kind.POOL_CREATE, 0x100, owner=7), call(Kind.POOL_ALLOC, 0x200, owner=7)]
    (one,) = found(*rows, call(Kind.POOL_DESTROY, 0x300, owner=7))
    assert (one.rule.id, str(one.site)) == ("pool-leak", place(0x200))


def test_what_is_wrong_from_its_making_was_made_there():
    (one,) = found(coming(), alloc(bus=1 << 40, mask=1, coherent_mask=1))
    assert (one.rule.id, str(one.site), one.made) == ("above-mask", place(0x100), None)


def test_in_whatever_order_they_are_told_the_first_comes_first():
    events = [Event(number, **alloc(0x100 * number)) for number in (1, 2, 3)]
    told = [Violation("misaligned", event, Entry(event), "x") for event in reversed(events)]
    sites = Sites({}.get)
    sites.follow([Event(0, **coming())])
    assert [one.number for one in findings(told, sites)] == [1, 2, 3]


def test_what_had_ended_before_is_said():
    mapped = {"size": 64, "bus": BUS}
    (one,) = found(
        coming(),
        call(Kind.MAP_PAGE, 0x100, **mapped),
        call(Kind.UNMAP_PAGE, 0x200, **mapped),
        call(Kind.UNMAP_PAGE, 0x300, **mapped),
    )
    assert one.rule.id == "double-unmap"
    assert (str(one.site), str(one.made), str(one.ended)) == (place(0x300), place(0x100), place(0x200))


def test_the_same_again_is_one_finding():
    rows = [row for size in range(1, 6) for row in (alloc(), free(size=size))]
    (one,) = found(coming(), *rows)
    assert (one.count, one.number) == (5, 2)
    assert one.evidence == (
        *(f"4096 bytes freed as {size}" for size in (1, 2, 3)),
        "and 2 more of the kind",
    )


def test_another_line_is_another_finding_and_the_first_comes_first():
    rows = [coming(), alloc(), free(0x300, size=1), alloc(), free(0x200, size=1), alloc(0x400), going()]
    seen = [(one.rule.id, str(one.site)) for one in found(*rows)]
    assert seen == [
        ("free-size", place(0x300)),
        ("free-size", place(0x200)),
        ("leak-on-remove", place(0x400)),
    ]


def test_two_devices_of_one_driver_share_a_finding():
    other = {"device": DEV + 8, "name": "ring.1"}
    (one,) = found(coming(), alloc(), free(size=1), alloc(**other), free(size=1, **other))
    assert (one.device, one.count) == ("ring.0, ring.1", 2)


OTHER = {"driver": "other", "module": "other", "name": "other.0"}


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        ({}, ["ring", "other"]),
        ({"modules": None, "devices": ["nothing"]}, ["ring", "other"]),
        ({"modules": ["other"]}, ["other"]),
        ({"modules": ["nobody"]}, []),
        ({"modules": ["nobody"], "devices": ["other.0"]}, ["other"]),
    ],
)
def test_only_what_is_asked_for(chosen, seen):
    rows = [coming(), coming("other", TEXT + 0x10_0000), alloc(), free(size=1)]
    rows += [alloc(0x10_0000, **OTHER), free(0x10_0000, size=1, **OTHER)]
    assert [one.driver for one in found(*rows, **chosen)] == seen


def test_a_device_with_a_name_too_long_for_a_record_is_asked_for_in_full():
    long = "a-device-of-a-very-long-name.0"
    rows = [coming(), alloc(name=long[:19]), free(size=1, name=long[:19])]
    assert len(found(*rows, modules=["nobody"], devices=[long])) == 1
    assert found(*rows, modules=["nobody"], devices=["a-device"]) == []


def test_a_driver_that_is_built_in_is_asked_for_by_its_name():
    rows = [{**row, "stack": (0x1000,), "driver": "nvme", "module": ""} for row in (alloc(), free(size=1))]
    (one,) = found(*rows, modules=["nvme"])
    assert (one.driver, one.module) == ("nvme", "")
    assert found(*rows, modules=["ring"]) == []


def test_a_name_too_long_for_a_record_is_said_in_full():
    long = "a_driver_of_sixteen"
    rows = [alloc(driver=long[:15]), free(size=1, driver=long[:15])]
    (one,) = found(coming(long), *rows)
    assert (one.driver, one.module) == (long, long)


def test_a_name_with_dashes_is_kept():
    rows = [alloc(driver="a-ring"), free(size=1, driver="a-ring")]
    (one,) = found(coming("a_ring"), *rows)
    assert (one.driver, one.module) == ("a-ring", "a_ring")


def test_a_place_that_only_the_log_has():
    event = Event(-1, Kind.NOTHING, time=5, driver="ring", name="ring.0", module="ring")
    stack = (Frame("ask", 8, 64, "ring", exact=True), Frame("really_probe", 9, 99))
    (one,) = findings([Violation("dma-from-stack", event, None, "refused", stack)], Sites({}.get))
    assert (str(one.site), one.driver, one.device, one.number) == ("ask+0x8 [ring]", "ring", "ring.0", -1)


def test_a_rule_that_nobody_knows():
    event = Event(1, Kind.ALLOC)
    with pytest.raises(BadInput, match="no rule free-sizes") as caught:
        findings([Violation("free-sizes", event, Entry(event), "")], Sites({}.get))
    assert caught.value.hint == "the nearest is free-size"


def test_a_reader_is_told_everything():
    (one,) = found(coming(), alloc(), free(size=1), alloc(), free(size=1))
    text = one.render()
    first, *lines = text.splitlines()
    assert first == f"free-size: ring, {place(0x200)} (seen 2 times)"
    assert max(map(len, lines)) <= 100
    flat = " ".join(text.split())
    assert all(words in flat for words in (one.rule.sentence, one.rule.why, one.rule.read, "ring.0"))
    assert f"made at {place(0x100)}" in flat
    assert "seen 4096 bytes freed as 1" in flat
    assert "limits" not in flat
    assert "call stack" in flat
    assert "call stack" not in one.render(stack=False)


def test_limits_are_told_where_a_rule_has_some():
    (one,) = found(coming(), alloc(0x100, error=0), alloc(bus=1 << 40, mask=1, coherent_mask=1, size=1))
    assert one.rule.id == "above-mask"
    assert " ".join(one.rule.limits.split()) in " ".join(one.render().split())


def test_json_is_plain():
    (one,) = found(coming(), alloc(), free(size=1))
    data = json.loads(json.dumps(one.to_json()))
    assert data["rule"] == "free-size"
    assert (data["driver"], data["device"], data["module"]) == ("ring", "ring.0", "ring")
    assert (data["count"], data["event"], data["ended"]) == (1, 2, None)
    assert data["site"]["stack"] == [place(0x200)]
    assert data["made"]["name"] == place(0x100)
    assert data["read"] == one.rule.read


def test_rules_are_what_the_file_says():
    assert list(rules()) == [one.id for one in rules().values()]
    assert rule("dma-from-stack").observed is Observed.LOG
    assert rule("free-size").limits == ""
    making = {one.id for one in rules().values() if one.points is Points.MAKING}
    assert making >= {"leak-on-remove", "leak-on-error", "never-unmapped", "pool-leak"}
    with pytest.raises(TypeError):
        rules()["mine"] = rule("free-size")
