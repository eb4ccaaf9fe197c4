# SPDX-License-Identifier: MIT
"""Audits as people and as machines read them."""

from __future__ import annotations

import dataclasses
import json
from io import StringIO

import pytest
from rich.console import Console

from harness.audit import AuditResult, Blind, Finding, Judged, Site, rule, rules
from harness.audit.result import exit_code
from harness.contract import Provenance
from harness.errors import FailureKind, HarnessError
from harness.report import audits_to_json, print_audit, print_rule, print_rules

SITE = Site("ring", "ring_probe", 0x5A, "ring.c", 41, stack=("ring_probe+0x5a [ring]", "platform_probe+0x44"))
MADE = Site("ring", "ring_start", 0x10, "ring.c", 20)
FINDING = Finding(
    rule("free-size"), "ring", "ring.0", "ring", SITE, MADE, None, ("8192 bytes freed as 4096",), 3, 17
)
ROW = Judged(
    what="coherent buffer",
    device="ring.0",
    driver="ring",
    direction="BIDIRECTIONAL",
    site=str(MADE),
    calls=3,
    failed=1,
    alive=1,
    smallest=4096,
    largest=8192,
    lowest=0x1000,
    highest=0x9FFF,
    mask=0xFFFFFF,
    rules=("free-size",),
)
WELL = dataclasses.replace(
    ROW, what="streaming mapping", direction="TO_DEVICE", site="other.c:3", failed=0, alive=0, rules=()
)
RESULT = AuditResult(
    driver="ring",
    source="built from ./ring",
    provenance=Provenance("debian-6.1", "6.1.0", "7.2", "tcg", "no KVM", "q35, 1 vCPU", "0123"),
    asked="usual, edu",
    loaded=("helper", "ring"),
    bound=("ring.0",),
    exercised="",
    events=42,
    lost=0,
    missed=0,
    looks=3,
    judged=(WELL, ROW),
    findings=(FINDING,),
    complaints=("warning: WARNING at ring.c:9",),
    blind=(Blind("there is no IOMMU", ("virt-to-phys-as-bus",), "--machine intel-iommu"),),
    failure=None,
    seconds=1.25,
)
CLEAN = dataclasses.replace(RESULT, judged=(WELL,), findings=(), complaints=())


def printed(result, width=110, **options):
    text = StringIO()
    print_audit(result, Console(file=text, width=width, highlight=False), **options)
    return text.getvalue()


def flat(text):
    return " ".join(text.split())


def test_everything_is_said():
    told = flat(printed(RESULT))
    for words in (
        "Audit of ring on Linux 6.1.0",
        "built from ./ring, loaded as helper, ring",
        "devices ring.0 exercise none machine usual, edu, q35, 1 vCPU",
        "WRONG coherent buffer, both ways, ring.0: 3 made, 1 of them refused, 1 left, 4096 to 8192 bytes, "
        "at 0x1000..0x9fff, device reaches 24 bits; breaks free-size ring.c:20 in ring_start+0x10 [ring]",
        "well streaming mapping, to the device, ring.0: 3 made, 4096 to 8192 bytes",
        "finding 1 free-size: ring, ring.c:41 in ring_probe+0x5a [ring] (seen 3 times)",
        "seen 8192 bytes freed as 4096",
        "the kernel complained warning: WARNING at ring.c:9",
        "Not judged: - there is no IOMMU; --machine intel-iommu [virt-to-phys-as-bus]",
        "1 finding in 6 buffers and mappings from 2 places",
        "42 calls of the DMA API recorded, none lost",
        "3 looks at the stopped machine",
    ):
        assert words in told
    assert told.index("WRONG") < told.index("well")  # what is wrong comes first
    assert "platform_probe" not in told
    assert "platform_probe" in printed(RESULT, verbose=True)


def test_loss_is_not_hidden():
    assert "42 calls of the DMA API recorded, 7 lost" in printed(dataclasses.replace(RESULT, lost=7))


def test_no_line_is_wider_than_the_terminal():
    assert max(map(len, printed(CLEAN, width=60).splitlines())) <= 60


def test_an_audit_that_was_cut_short_says_by_what():
    cut = dataclasses.replace(CLEAN, failure=HarnessError("it stopped"))
    assert "no findings, and the audit did not come to its end: not-done" in flat(printed(cut))


def test_a_driver_that_did_nothing():
    told = printed(dataclasses.replace(CLEAN, judged=(), bound=()))
    assert "never asked the DMA API for anything" in told
    assert "none: no device was bound" in told


def test_many_places_are_cut_and_what_is_wrong_is_not():
    rows = tuple(dataclasses.replace(WELL, site=f"many.c:{number}") for number in range(100))
    told = printed(dataclasses.replace(RESULT, judged=(*rows, ROW)))
    assert "WRONG" in told
    assert "and 61 more, all well; -v shows them" in told
    assert "many.c:99" in printed(dataclasses.replace(RESULT, judged=rows), verbose=True)


def test_what_a_terminal_would_obey_is_escaped():
    assert "\x1b[31m" not in printed(dataclasses.replace(CLEAN, complaints=("\x1b[31mred",)))


def test_json_has_all_of_it():
    document = json.loads(audits_to_json([RESULT, CLEAN]))
    assert (document["schema"], document["findings"], len(document["audits"])) == ("iobmd.audit/1", 1, 2)
    one, clean = document["audits"]
    assert (one["exit_code"], clean["exit_code"]) == (1, 0)
    assert one["failure"] is None
    assert one["findings"][0]["rule"] == "free-size"
    assert one["findings"][0]["site"]["line"] == 41
    assert one["judged"][1] == {
        **dataclasses.asdict(ROW),
        "rules": ["free-size"],
        "lowest": "0x1000",
        "highest": "0x9fff",
        "mask": "0xffffff",
    }
    assert one["not_judged"] == [
        {"what": "there is no IOMMU", "rules": ["virt-to-phys-as-bus"], "hint": "--machine intel-iommu"}
    ]
    assert (one["ledger"], one["outside"]) == ({"events": 42, "lost": 0, "missed": 0}, {"looks": 3})
    failed = dataclasses.replace(CLEAN, failure=HarnessError("it stopped", observed="EIO"))
    assert json.loads(audits_to_json([failed]))["audits"][0]["failure"] == {
        "kind": "not-done",
        "summary": "it stopped",
        "observed": "EIO",
    }


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([], 0),
        ([CLEAN], 0),
        ([CLEAN, RESULT], 1),
        ([dataclasses.replace(CLEAN, complaints=("a",))], FailureKind.KERNEL_TAINTED.exit_code),
        ([dataclasses.replace(RESULT, failure=HarnessError("x"))], FailureKind.NOT_DONE.exit_code),
    ],
)
def test_what_iobmd_exits_with(results, code):
    assert exit_code(results) == code


def test_every_rule_is_listed_and_explained():
    text = StringIO()
    print_rules(rules().values(), Console(file=text, width=110))
    assert [name for name in rules() if name not in text.getvalue()] == []
    for one in rules().values():
        text = StringIO()
        print_rule(one, Console(file=text, width=110))
        told = flat(text.getvalue())
        for words in (one.id, one.sentence, one.why, one.read, one.limits):
            assert flat(words) in told
