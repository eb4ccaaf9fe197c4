# SPDX-License-Identifier: MIT
"""The catalogue that ships, and what becomes of a damaged one."""

import re
from collections import Counter
from importlib.resources import files

import pytest

from harness.contract.catalogue import CatalogueDamaged, UnknownClause, catalogue, parse_catalogue
from harness.contract.model import Kind
from harness.errors import BadInput

COUNTS = {"A": 19, "B": 11, "C": 15, "D": 21, "E": 19, "F": 17, "G": 20, "H": 15, "I": 10, "J": 11, "K": 15}

# The names of Apple's headers that clauses speak of, typed from the headers and not from the catalogue.
APPLE = {
    "kIODirectionIn",
    "kIODirectionOut",
    "kIOMemoryDirectionMask",
    "kIOMemoryPhysicallyContiguous",
    "kIOMemoryHostPhysicallyContiguous",
    "kIOMemoryPageable",
    "kIOMemoryPurgeable",
    "kIOMemoryKernelUserShared",
    "kIOMemoryMapperNone",
    "kIOMemoryThreadSafe",
    "kIOMemoryClearEncrypt",
    "kIOMemoryHostOnly",
    "kIOMemoryRemote",
    "kIOMemoryMapCopyOnWrite",
    "kIOMemoryPersistent",
    "kIOBufferDescriptorMemoryFlags",
    "kIOMapInhibitCache",
    "kIOMapWriteThruCache",
    "kIOMapCopybackCache",
    "kIOMapWriteCombineCache",
    "kIOMapCacheMask",
    "kIOMapPrefault",
    "kIOMapUnique",
    "kIOMapReadOnly",
    "kIORealTimeCache",
    "kIOPostedWrite",
    "kIOCopybackInnerCache",
    "kIOReturnSuccess",
    "kIOReturnError",
    "kIOReturnNoMemory",
    "kIOReturnBadArgument",
    "kIOReturnNotReady",
    "kIOReturnNotWritable",
}

SMALL = """
implementation = "xnu-1"
[group.A]
title = "First"
[clause.A01]
kind = "D"
sentence = "One."
source = "a page"
observable = "a value"
[clause.A02]
kind = "X"
sentence = "Two."
source = "a header"
observable = "a code"
decision = "the page"
implementation = "the other"
[group.B]
title = "Second"
[clause.B01]
kind = "I"
sentence = "Three."
source = "a file"
observable = "an address"
"""
SMALL_COUNTS = {"A": 2, "B": 1}


def test_every_clause_is_there_once_and_in_order():
    expected = [f"{letter}{number:02}" for letter, count in COUNTS.items() for number in range(1, count + 1)]
    assert len(expected) == 173
    assert list(catalogue()) == expected
    assert list(catalogue().groups) == list(COUNTS)
    assert Counter(clause.group for clause in catalogue().values()) == COUNTS


def test_it_is_read_once():
    assert catalogue() is catalogue()


def test_kinds():
    contradicted = [clause.id for clause in catalogue().values() if clause.kind is Kind.CONTRADICTED]
    assert contradicted == ["A10", "D12", "D14", "F04", "K08", "K10"]
    partly = [
        clause.id for clause in catalogue().values() if clause.kind is Kind.DOCUMENTED_AND_IMPLEMENTATION
    ]
    assert partly == ["B05"]
    tally = Counter(clause.kind for clause in catalogue().values())
    assert (tally[Kind.DOCUMENTED], tally[Kind.IMPLEMENTATION]) == (60, 106)


def test_a_choice_says_both_sides():
    chosen = {clause.id for clause in catalogue().values() if clause.decision}
    assert chosen == {"A10", "B05", "D12", "D14", "F04", "H06", "K08", "K10"}
    assert chosen == {clause.id for clause in catalogue().values() if clause.implementation}
    assert chosen == {clause.id for clause in catalogue().decided()}


@pytest.mark.parametrize("clause", catalogue().values(), ids=lambda clause: clause.id)
def test_a_clause_reads_well(clause):
    assert clause.group == clause.id[0]
    assert clause.sentence.endswith(".")
    assert len(clause.sentence) <= 130
    assert all(
        text.isascii() for text in (clause.sentence, clause.source, clause.observable, clause.decision)
    )
    # A private tag such as S001 or BC:194 is no source to a reader.
    assert not re.search(r"\b(S00\d|BH|BC|MH|MC|LC|MT|US|VM|PM|DK|T)\b(:\d+)?", clause.source)


def test_constants_have_apples_spelling():
    text = files("harness.contract").joinpath("catalogue.toml").read_text(encoding="utf-8")
    assert set(re.findall(r"\bkIO\w+", text)) <= APPLE


def test_references_lead_to_clauses():
    for clause in catalogue().values():
        for name in re.findall(r"\b[A-K]\d\d\b", clause.sentence + clause.observable):
            assert name in catalogue()
            assert name != clause.id


def test_select():
    names = [clause.id for clause in catalogue().select("j", "C08", "c08", " A01")]
    assert names == ["A01", "C08", *(f"J{number:02}" for number in range(1, 12))]
    assert len(catalogue().select()) == 173


def test_in_group():
    assert [clause.id for clause in catalogue().in_group("I")] == [f"I{number:02}" for number in range(1, 11)]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("C8", "did you mean C08?"),
        ("c-8", "did you mean C08?"),
        ("C008", "did you mean C08?"),
        ("C16", "group C (Alignment) goes from C01 to C15"),
        ("alignment", "did you mean C (Alignment)?"),
        ("cash", "did you mean F (Cache modes)?"),
        ("L01", "the groups are: A Creation"),
        ("", "the groups are: A Creation"),
    ],
)
def test_an_unknown_name_gets_a_hint(name, hint):
    with pytest.raises(UnknownClause) as caught:
        catalogue().select("A", name)
    assert isinstance(caught.value, BadInput)
    assert caught.value.exit_code == 2
    assert repr(name) in caught.value.summary
    assert hint in caught.value.hint
    assert hint in str(caught.value)


def test_it_is_an_honest_mapping():
    assert "C08" in catalogue()
    assert "C99" not in catalogue()
    assert catalogue().get("C99") is None
    with pytest.raises(UnknownClause):
        catalogue()["C99"]
    with pytest.raises(UnknownClause):
        catalogue().in_group("L")


def test_a_small_one_parses():
    small = parse_catalogue(SMALL, SMALL_COUNTS)
    assert list(small) == ["A01", "A02", "B01"]
    assert small.implementation == "xnu-1"
    assert small["A02"].implementation == "the other"


def swapped() -> str:
    return SMALL.replace("A01", "A0x").replace("A02", "A01").replace("A0x", "A02")


@pytest.mark.parametrize(
    ("damaged", "finding"),
    [
        (SMALL.replace("[clause.B01]", "[clause.B02]"), "clauses missing: B01"),
        (SMALL.replace("[clause.B01]", "[clause.B02]"), "clauses that should not be: B02"),
        (swapped(), "clauses out of order, from A02 on"),
        (SMALL.replace('kind = "D"', 'kind = "Z"'), "A01: kind 'Z' is none of D, I, X, D/I"),
        (SMALL.replace('kind = "D"', "kind = 4"), "A01: kind must be one line of text"),
        (SMALL.replace('kind = "D"', "kind = []"), "A01: kind must be one line of text"),
        (SMALL.replace('kind = "D"\n', ""), "A01: has no kind"),
        (
            SMALL.replace('decision = "the page"\nimplementation = "the other"\n', ""),
            "A02: is contradicted (X) and says no decision",
        ),
        (SMALL.replace('implementation = "the other"\n', ""), "A02: decision and implementation only"),
        (SMALL.replace('"One."', '" One."'), "A01: sentence must be one line of text"),
        (SMALL.replace('"One."', '""'), "A01: sentence must be one line of text"),
        (SMALL.replace('"One."', '"One\\ntwo."'), "A01: sentence must be one line of text"),
        (SMALL.replace("observable", "visible"), "A01: unknown key visible"),
        (SMALL.replace('title = "First"', 'name = "First"'), "group A: must have a title"),
        (SMALL.replace("[group.B]", "[group.C]"), "groups are A C; they must be A B"),
        (SMALL.replace('implementation = "xnu-1"', "colour = 1"), "top level: unknown key colour"),
        (SMALL.replace('implementation = "xnu-1"', ""), "top level: implementation must name"),
    ],
)
def test_damage_is_found_and_named(damaged, finding):
    with pytest.raises(CatalogueDamaged) as caught:
        parse_catalogue(damaged, SMALL_COUNTS)
    assert any(line.startswith(finding) for line in caught.value.evidence), caught.value.evidence


@pytest.mark.parametrize("damaged", [SMALL.replace("A02", "A01"), "[", "clause = 1", "clause.A01 = 1"])
def test_what_is_no_catalogue_at_all(damaged):
    with pytest.raises(CatalogueDamaged):
        parse_catalogue(damaged, SMALL_COUNTS)


def test_the_shipped_counts_are_the_default():
    with pytest.raises(CatalogueDamaged, match="faults"):
        parse_catalogue(SMALL)
