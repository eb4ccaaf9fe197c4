# SPDX-License-Identifier: MIT
"""What very many buffers should be like, against what was seen of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.errors import BadInput, GuestFailure
from harness.oracle.leaf import Leaf
from harness.oracle.memtype import MemoryType
from harness.oracle.pages import spread
from harness.oracle.pagetypes import mask_of, types_in
from harness.oracle.translate import NOWHERE

if TYPE_CHECKING:
    from harness.oracle.survey import Survey

_SHOWN_BUFFERS: Final = 5
_SHOWN_GROUPS: Final = 8


class Expectations(TypedDict, total=False):
    """What can be expected of the buffers of a `Survey`; every value is one for all or an array of one each.

    Attributes:
        types: effective types over all aliases, these and no others: a `MemoryType`, several, or bit sets.
        pat_types: the same for PAT types.
        physical: physical address of the first byte.
        pieces: physically contiguous stretches; 1 is a contiguous buffer.
        aliases: page-table leaves that map a byte of it.
        alignment: a number of bytes that divides the physical address.
        mask: no page's physical address has a bit outside of it.
        segments: a claim as getPhysicalSegment makes it: an array with columns ``address`` and ``length``.
            (0, 0) claims that there is nothing at the offset.
        offset: the offset *segments* were asked for, 0 if left out.
        length: bytes of a buffer that *segments* count, its storage if left out.
        apart: True: no page belongs to two buffers of the survey.
    """

    types: MemoryType | Iterable[MemoryType] | NDArray[np.uint8]
    pat_types: MemoryType | Iterable[MemoryType] | NDArray[np.uint8]
    physical: ArrayLike
    pieces: ArrayLike
    aliases: ArrayLike
    alignment: ArrayLike
    mask: ArrayLike
    segments: NDArray[np.void]
    offset: ArrayLike
    length: ArrayLike
    apart: bool


@dataclass(frozen=True)
class Mismatch:
    """One thing about one buffer that is not as expected.

    Attributes:
        number: position of the buffer in the survey.
        address: its virtual address.
        what: which property.
        expected: in words.
        observed: in words.
    """

    number: int
    address: int
    what: str
    expected: str
    observed: str

    def __str__(self) -> str:
        return (
            f"buffer {self.number} at {self.address:#x}: {self.what}: "
            f"expected {self.expected}, observed {self.observed}"
        )


class SurveyMismatch(GuestFailure, AssertionError):
    """Buffers are not what they should be; the text shows the first of them with all their leaves.

    Attributes:
        mismatches: all that is wrong, by buffer.
    """

    def __init__(self, survey: Survey, mismatches: Sequence[Mismatch]) -> None:
        wrong = list(dict.fromkeys(each.number for each in mismatches))
        evidence: list[str] = []
        for number in wrong[:_SHOWN_BUFFERS]:
            evidence += [str(each) for each in mismatches if each.number == number]
            evidence += [f"    {line}" for line in summary_of(survey.leaves(number))]
        if len(wrong) > _SHOWN_BUFFERS:
            evidence.append(f"... and {len(wrong) - _SHOWN_BUFFERS} more buffers")
        kinds = dict.fromkeys(each.what for each in mismatches)
        super().__init__(
            f"{len(wrong)} of {len(survey)} buffers are not as expected: {', '.join(kinds)}",
            evidence=evidence,
        )
        self.mismatches = tuple(mismatches)


@dataclass(frozen=True)
class _Finding:
    what: str
    wrong: NDArray[np.bool_]
    expected: Callable[[int], str]
    observed: Callable[[int], str]


def mismatches(survey: Survey, expected: Expectations) -> tuple[Mismatch, ...]:
    """Return how the buffers of *survey* differ from *expected*, by number.

    Raises:
        BadInput: an unknown name, a value of another kind, or neither one nor one each.
    """
    unknown = set(expected) - set(Expectations.__annotations__)
    if unknown:
        raise BadInput(
            f"buffers have no {', '.join(sorted(unknown))} to expect",
            hint=f"there are: {', '.join(Expectations.__annotations__)}",
        )
    found: list[Mismatch] = []
    for finding in _findings(survey, expected):
        for number in np.flatnonzero(finding.wrong).tolist():
            address = int(survey.rows["address"][number])
            texts = finding.expected(number), finding.observed(number)
            found.append(Mismatch(number, address, finding.what, *texts))
    return tuple(sorted(found, key=lambda each: each.number))


def _findings(survey: Survey, expected: Expectations) -> Iterator[_Finding]:
    rows, count = survey.rows, len(survey)
    yield _Finding(
        "mapping",
        ~rows["mapped"],
        lambda n: f"all {rows['storage'][n]} bytes mapped",
        lambda n: f"{survey.unmapped_pages[n]} pages that are not",
    )
    for name, column, what in (
        ("types", "effective", "effective types of all aliases"),
        ("pat_types", "pat", "PAT types of all aliases"),
    ):
        if name in expected:
            yield _types(rows[column], expected[name], what)  # type: ignore[literal-required]
    if "physical" in expected:
        yield _equal(rows["physical"], expected["physical"], "physical address", _address)
    if "pieces" in expected:
        yield _equal(rows["pieces"], expected["pieces"], "contiguous pieces", str)
    if "aliases" in expected:
        yield _equal(rows["aliases"], expected["aliases"], "leaves", str)
    if "alignment" in expected:
        yield _alignment(survey, spread(expected["alignment"], count, "alignment"))
    if "mask" in expected:
        yield _mask(survey, spread(expected["mask"], count, "mask"))
    if "segments" in expected:
        yield _segments(survey, expected)
    if expected.get("apart"):
        yield _Finding(
            "memory of its own",
            rows["shared"] > 0,
            lambda _: "no page that another buffer has too",
            lambda n: f"{rows['shared'][n]} such pages",
        )


def _types(column: NDArray[np.uint8], wanted: object, what: str) -> _Finding:
    if isinstance(wanted, np.ndarray):
        bits = spread(wanted, len(column), what)
    elif isinstance(wanted, MemoryType):
        bits = spread(mask_of(wanted), len(column), what)
    else:
        many = list(wanted) if isinstance(wanted, Iterable) else [wanted]
        kinds = [kind for kind in many if isinstance(kind, MemoryType)]
        if len(kinds) != len(many):
            raise BadInput(f"{what}: a MemoryType, several of them, or an array of bit sets is needed")
        bits = spread(mask_of(kinds), len(column), what)
    return _Finding(what, column != bits, lambda n: _names(bits[n]), lambda n: _names(column[n]))


def _names(mask: int) -> str:
    found = types_in(int(mask))
    return " and ".join(kind.value for kind in MemoryType if kind in found) or "none"


def _equal(column: NDArray[np.uint64], wanted: ArrayLike, what: str, text: Callable[[int], str]) -> _Finding:
    values = spread(wanted, len(column), what)
    wrong = column.astype(np.uint64) != values
    return _Finding(what, wrong, lambda n: text(int(values[n])), lambda n: text(int(column[n])))


def _address(physical: int) -> str:
    return "nowhere" if physical == NOWHERE else f"{physical:#x}"


def _alignment(survey: Survey, wanted: NDArray[np.uint64]) -> _Finding:
    physical = survey.rows["physical"]
    if not wanted.all():
        raise BadInput("alignment: 0 divides nothing", hint="alignment is in bytes, from 1 on")
    wrong = (physical % wanted != 0) & (physical != np.uint64(NOWHERE))
    return _Finding(
        "alignment",
        wrong,
        lambda n: f"a physical address that {int(wanted[n]):#x} divides",
        lambda n: _address(int(physical[n])),
    )


def _mask(survey: Survey, wanted: NDArray[np.uint64]) -> _Finding:
    bits = survey.rows["address_bits"]
    outside = bits & ~wanted
    return _Finding(
        "address mask",
        outside != 0,
        lambda n: f"physical addresses within {int(wanted[n]):#x}",
        lambda n: f"pages with the bits {int(outside[n]):#x}",
    )


def _segments(survey: Survey, expected: Expectations) -> _Finding:
    claimed = np.atleast_1d(expected["segments"])
    names = claimed.dtype.names or ()
    if not {"address", "length"} <= set(names):
        raise BadInput("segments: an array with the columns 'address' and 'length' is needed")
    address = spread(claimed["address"], len(survey), "segments")
    length = spread(claimed["length"], len(survey), "segments")
    seen = survey.segments(expected.get("offset", 0), expected.get("length"))
    nothing = (seen["length"] == 0) & (address == 0) & (length == 0)
    wrong = ((seen["address"] != address) | (seen["length"] != length)) & ~nothing
    return _Finding(
        "segment",
        wrong,
        lambda n: f"{length[n]} bytes at {int(address[n]):#x}",
        lambda n: f"{seen['length'][n]} bytes at {_address(int(seen['address'][n]))}",
    )


def summary_of(leaves: Iterable[Leaf]) -> Iterator[str]:
    """Yield a line for each kind of leaf among *leaves*: how many there are and where the first one is."""
    groups: dict[tuple[object, ...], list[Leaf]] = {}
    for leaf in leaves:
        types = leaf.pat_index, leaf.pat_type, leaf.mtrr_type, leaf.effective
        key = (leaf.size, *types, leaf.user, leaf.writable, leaf.cpus)
        groups.setdefault(key, []).append(leaf)
    for mine in list(groups.values())[:_SHOWN_GROUPS]:
        first = mine[0]
        yield (
            f"{len(mine)} {'leaf' if len(mine) == 1 else 'leaves'} of {first.size >> 10} KiB, "
            f"{'user' if first.user else 'kernel'}, {'rw' if first.writable else 'ro'}, "
            f"PAT {first.pat_index} {first.pat_type.value} x MTRR {first.mtrr_type.value} = "
            f"{first.effective.value}, first {first.va:#x} -> {first.pa:#x}"
        )
    if len(groups) > _SHOWN_GROUPS:
        yield f"... and {len(groups) - _SHOWN_GROUPS} more kinds of leaves"
    if not groups:
        yield "no leaf maps it"
