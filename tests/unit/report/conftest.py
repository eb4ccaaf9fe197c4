# SPDX-License-Identifier: MIT
"""A small catalogue and a judgement that has everything a report can meet."""

import dataclasses
import os
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from harness.contract.catalogue import Catalogue
from harness.contract.model import (
    Clause,
    ClauseResult,
    Evidence,
    Judgement,
    Kind,
    PageEvidence,
    Provenance,
    Verdict,
)

GOLDEN = Path(__file__).parent / "golden"

CLAUSES = (
    Clause("A01", "A", Kind.DOCUMENTED, "A factory gives an object.", "withOptions page", "not NULL"),
    Clause("A02", "A", Kind.IMPLEMENTATION, "Zero bytes fail.", "a.cpp:1 (init)", "NULL"),
    Clause(
        "A03",
        "A",
        Kind.IMPLEMENTATION,
        "With the IOMMU on, a buffer takes a slot of 64 bytes in a page it shares with others, and this"
        " sentence goes on for long enough to need a second line everywhere.",
        "a.cpp:2 (init)",
        "offset in the page",
    ),
    Clause("B01", "B", Kind.DOCUMENTED, "Write-combined memory is WC.", "withOptions page", "WC"),
    Clause(
        "B02",
        "B",
        Kind.CONTRADICTED,
        "Write-through memory is WT.",
        "withOptions page, against pmap.c",
        "WT",
        "a genuine WT mapping",
        "gives WB",
    ),
    Clause("B03", "B", Kind.DOCUMENTED_AND_IMPLEMENTATION, "Too long a length is ignored.", "a.h", "length"),
    Clause("B04", "B", Kind.IMPLEMENTATION, "Switching flushes.", "pmap.c", "contents"),
    Clause("C01", "C", Kind.DOCUMENTED, "Mapping maps.", "a.h (map)", "pointer"),
    Clause("C02", "C", Kind.DOCUMENTED, "Unmapping unmaps.", "a.h (map)", "no pointer"),
)
GROUPS = {"A": "Creation", "B": "Cache modes", "C": "Mapping"}


def leaf(number: int, pat_index: int, pat_type: str) -> PageEvidence:
    pa = 0x1_2340_0000 + 4096 * number
    return PageEvidence(
        va=0xFFFF_8880_0000_0000 + pa,
        pa=pa,
        size=4096,
        entry=0x8000_0000_0000_0163 | pa | pat_index << 3,
        pat_index=pat_index,
        pat_type=pat_type,
        effective=pat_type,
    )


def results() -> tuple[ClauseResult, ...]:
    clause = {clause.id: clause for clause in CLAUSES}
    wide = Evidence(
        notes=("12 leaves of two mappings were read", "line one\nline two"),
        ranges=((0x1_2340_0000, 0x200000), (0x7000, 100)),
        pages=tuple(leaf(number, 2, "UC-") for number in range(12)),
    )
    huge = PageEvidence(0xFFFF_8880_4000_0000, 0x4000_0000, 1 << 30, 0x8000_0000_4000_01E3, 0, "WB", "WB")
    return (
        ClauseResult(
            clause["A01"],
            Verdict.HOLDS,
            observed="an object",
            evidence=Evidence(("fd 5",)),
            seconds=0.0123456789,
        ),
        ClauseResult(
            clause["A02"], Verdict.BROKEN, expected="NULL", observed="an object of 0 bytes", seconds=0.5
        ),
        ClauseResult(clause["A03"], Verdict.NOT_APPLICABLE, reason="this machine has no IOMMU"),
        ClauseResult(
            clause["B01"],
            Verdict.HOLDS,
            expected="WC",
            observed="WC in 1 leaf",
            evidence=Evidence(pages=(leaf(99, 1, "WC"), huge)),
            from_outside=True,
        ),
        ClauseResult(
            clause["B02"],
            Verdict.BROKEN,
            expected="WT in every leaf",
            observed="UC- in 12 leaves",
            evidence=wide,
            from_outside=True,
        ),
        ClauseResult(clause["B03"], Verdict.HOLDS),
        ClauseResult(clause["B04"], Verdict.UNPROVED, reason="TCG models no caches"),
        ClauseResult(clause["C01"], Verdict.UNPROVED, reason="no check yet"),
        ClauseResult(clause["C02"], Verdict.UNPROVED, reason="no check yet"),
    )


@pytest.fixture
def small() -> Catalogue:
    return Catalogue(CLAUSES, GROUPS, implementation="xnu-1")


@pytest.fixture
def judgement() -> Judgement:
    return Judgement(
        results=results(),
        provenance=Provenance(
            kernel="debian-6.1-cloud",
            release="6.1.0-56-cloud-amd64",
            qemu="7.2.22",
            accelerator="tcg",
            accelerator_reason="no guest came up under KVM on this host",
            machine="q35, cpu max, 512 MiB, 1 CPU",
            module="0123456789abcdef",
        ),
        boot_seconds=1.5249,
        check_seconds=3.75,
        oracle_milliseconds=(3.25, 2.0, 9.5),
    )


@pytest.fixture
def replace():
    """Return a judgement with some of its fields, or of one clause's result's, replaced."""

    def changed(judgement: Judgement, clause: str = "", **fields: object) -> Judgement:
        if not clause:
            return dataclasses.replace(judgement, **fields)
        return dataclasses.replace(
            judgement,
            results=tuple(
                dataclasses.replace(result, **fields) if result.clause.id == clause else result
                for result in judgement.results
            ),
        )

    return changed


@pytest.fixture
def screen():
    """Return a console of a given width that keeps what it prints in its ``file``."""

    def made(width: int, **options: object) -> Console:
        return Console(file=StringIO(), width=width, highlight=False, **options)

    return made


@pytest.fixture
def golden():
    """Compare a text with a file; with ``IOBMD_UPDATE_GOLDEN`` set, write it first."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("IOBMD_UPDATE_GOLDEN"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return compare
