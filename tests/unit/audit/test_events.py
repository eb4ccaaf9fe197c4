# SPDX-License-Identifier: MIT
"""Decoding records: the numbers are the header's, pieces find their call, a gap is never passed over."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.audit import Decoder, Direction, Flag, Kind, Piece, check_layouts
from harness.errors import BadInput


def rows_of(layouts, *calls):
    """Records as the module writes them: (struct, fields), numbered from 0."""
    rows = []
    for number, (struct, fields) in enumerate(calls):
        rows.append(layouts.struct(f"dma_ledger_{struct}").pack(sequence=number + 1, **fields))
    return np.frombuffer(b"".join(rows), layouts.struct("dma_ledger_record").dtype)


@pytest.fixture
def stream(layouts):
    call = {
        "kind": int(Kind.ALLOC),
        "pieces": 2,
        "direction": 0xFFFF,
        "flags": 0x11,
        "module": 3,
        "frames": 2,
    }
    texts = {"driver": b"e1000e", "subsystem": b"pci\0form", "name": b"0000:00:02.0", "stack": [5, 6, 7]}
    numbers = {"size": 8192, "bus": 0xFFFF_F000, "virtual_address": (1 << 64) - 4096, "error": -12, "cpu": 1}
    piece = {"kind": int(Kind.PIECE), "parent": 1, "length": 4096, "physical": 0x5000}
    return rows_of(
        layouts,
        ("module", {"kind": int(Kind.MODULE_COMING), "id": 3, "name": b"e1000e", "base": 64, "size": 9}),
        ("record", call | texts | numbers),
        ("piece", piece),
        ("piece", piece | {"index": 1, "physical": 0x9000, "bus": 1, "bus_length": 2}),
        ("record", {"kind": int(Kind.FREE), "direction": 2}),
    )


def test_the_numbers_are_the_headers(layouts):
    check_layouts(layouts)
    for name in ("record", "piece", "module"):
        assert layouts.struct(f"dma_ledger_{name}").size == 256


def test_a_call_is_decoded_with_all_it_has(layouts, stream):
    came, call, freed = Decoder(layouts).feed(stream)
    assert (came.kind, came.module, came.virtual, came.size) == (Kind.MODULE_COMING, "e1000e", 64, 9)
    assert (call.number, call.caller, call.driver, call.subsystem) == (1, "e1000e", "e1000e", "pci")
    assert (call.name, call.stack, call.error, call.cpu) == ("0000:00:02.0", (5, 6), -12, 1)
    assert (call.bus, call.virtual, call.size) == (0xFFFF_F000, (1 << 64) - 4096, 8192)
    assert call.flags == Flag.IRQS_OFF | Flag.VMALLOC
    assert call.direction is Direction.UNSAID
    assert call.runs == (Piece(0x5000, 4096), Piece(0x9000, 4096, 1, 2))
    assert (freed.number, freed.kind, freed.caller, freed.runs) == (4, Kind.FREE, "kernel", ())


@given(cuts=st.lists(st.integers(0, 5), max_size=4))
def test_where_reading_stopped_changes_nothing(layouts, stream, cuts):
    decoder, events, at = Decoder(layouts), [], 0
    for cut in [*sorted(cuts), 5]:
        events += decoder.feed(stream[at:cut])
        at = cut
    assert events == list(Decoder(layouts).feed(stream))


@pytest.mark.parametrize("kept", [[0, 1, 3, 4], [2, 3, 4]])
def test_a_missing_record_is_told(layouts, stream, kept):
    with pytest.raises(BadInput, match=r"records are missing|a piece follows no call"):
        list(Decoder(layouts).feed(stream[kept]))


def test_a_piece_of_another_call_is_told(layouts, stream):
    broken = stream.copy()
    broken.view(layouts.struct("dma_ledger_piece").dtype)["parent"][3] = 0
    with pytest.raises(BadInput, match="not its own"):
        list(Decoder(layouts).feed(broken))


def test_another_abi_is_refused(layouts):
    class Newer:
        def enum(self, name):
            values = dict(layouts.enum(name))
            return values | {"DMA_LEDGER_ABI_VERSION": 2} if name == "dma_ledger_number" else values

    with pytest.raises(BadInput, match="another ABI"):
        check_layouts(Newer())


def test_events_are_values(layouts, stream):
    event = next(iter(Decoder(layouts).feed(stream)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.size = 1
