# SPDX-License-Identifier: MIT
"""Coding: the compiled records against the layouts, the decoder against every way to cut a stream."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BadInput
from harness.images import source_root
from harness.link.errors import ChannelBroken
from harness.link.frames import Decoder, Noise, Record
from harness.link.syscalls import Call, In, InOut, Nr, Out, SyscallResult, cstring


@pytest.mark.parametrize(
    "name", ["link_header", "link_hello", "link_syscall", "link_reloc", "link_syscall_result", "link_noise"]
)
def test_records_agree_with_the_layouts(link_layouts, name):
    layout = link_layouts.struct(name)
    record = Record(layout)
    data = bytes(range(1, layout.size + 1))
    values = record.unpack(data)
    lists = {field: list(value) if isinstance(value, tuple) else value for field, value in values.items()}
    assert lists == layout.unpack(data)
    assert record.pack(**values) == data
    assert record.pack() == bytes(layout.size)
    with pytest.raises(KeyError):
        record.pack(nonsense=1)


def test_the_header_is_where_its_comment_says(protocol):
    frame = protocol.encode(protocol.ping, 0x1122334455667788, b"xyz")
    assert frame[:16] == b"IBL1" + struct.pack("<IQ", 3, 0x1122334455667788)
    assert len(frame) == 32 + 3


def test_names_that_no_debug_information_carries():
    """Two strings of the header are macros: whoever writes them elsewhere must write the same."""
    from harness import vm
    from harness.link import guest

    text = (source_root() / "guest" / "link_abi.h").read_text()
    defines = dict(re.findall(r'#define (LINK_\w+) "(.*)"', text))
    assert defines["LINK_PORT_NAME"] == guest.PORT_NAME
    assert defines["LINK_READY_LINE"] == vm.READY_LINE


pieces = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.binary(max_size=60)),
        st.tuples(st.just("junk"), st.one_of(st.binary(min_size=1, max_size=60), st.just(b"IBL1IBL"))),
    ),
    max_size=8,
)


@given(pieces=pieces, cuts=st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_frames_come_out_of_any_stream_however_it_is_cut(protocol, pieces, cuts):
    stream, payloads, junk = bytearray(), [], 0
    for kind, data in pieces:
        if kind == "frame":
            stream += protocol.encode(protocol.ping, 1, data)
            payloads.append(data)
        else:
            stream += data
            junk += len(data)
    stream += protocol.encode(protocol.ping, 2)
    decoder, got, skipped, at, turn = Decoder(protocol), [], 0, 0, 0
    while at < len(stream):
        step = cuts[turn % len(cuts)]
        decoder.feed(bytes(stream[at : at + step]))
        at, turn = at + step, turn + 1
        while True:
            frame, noise = decoder.next(), decoder.take_noise()
            if frame is None and noise is None:
                break
            got += [frame] if frame else []
            skipped += noise.count if noise else 0
    assert [frame.payload for frame in got] == [*payloads, b""]
    assert skipped == junk
    assert decoder.partial == 0


def test_noise_reads_well():
    assert str(Noise(3, b"abc")) == "3 bytes: 61 62 63"
    assert str(Noise(1, b"a")) == "1 byte: 61"
    assert str(Noise(100, b"ab")) == "100 bytes: 61 62 ..."
    assert str(Noise(5, b"")) == "5 bytes"


def test_only_what_is_needed_travels(protocol):
    call = Call(protocol, Nr.IOCTL, (3, In(bytes(100)), Out(200), InOut(bytes(50))))
    head = protocol.call_record.unpack(call.payload)
    assert head["args"][0] == 3
    assert head["filled"] == 104 + 50
    assert head["out_start"] == 100
    assert head["out_length"] == head["arena"] - 100
    assert head["arena"] == 160 + 200
    assert len(call.payload) == protocol.call_record.size + 3 * protocol.reloc_record.size + 154


def test_outputs_come_in_order_of_the_arguments(protocol):
    call = Call(protocol, 0, (Out(3), InOut(b"ABCDEFGH" * 2, {8: Out(2)}), In(b"zz"), Out(1)))
    head = protocol.call_record.unpack(call.payload)
    window = bytes(range(head["out_length"]))
    result = call.result(protocol.result_record.pack(result=-2) + window)
    start = head["out_start"]
    relocs = call.payload[protocol.call_record.size :]
    size = protocol.reloc_record.size
    targets = [protocol.reloc_record.unpack(relocs[i * size :])["target"] - start for i in range(5)]
    assert result.value == -2
    assert result.outputs == (
        window[targets[0] : targets[0] + 3],
        window[targets[1] : targets[1] + 16],
        window[targets[2] : targets[2] + 2],
        window[targets[4] : targets[4] + 1],
    )


def test_a_call_without_outputs_asks_for_nothing_back(protocol):
    call = Call(protocol, Nr.OPEN, (cstring("/dev/iobmd"), 2))
    assert protocol.call_record.unpack(call.payload)["out_length"] == 0
    assert call.result(protocol.result_record.pack(result=5)) == SyscallResult(5, ())
    with pytest.raises(ChannelBroken):
        call.result(b"short")


def test_negative_arguments_are_64_bit(protocol):
    call = Call(protocol, Nr.MMAP, (0, -1))
    assert protocol.call_record.unpack(call.payload)["args"][1] == (1 << 64) - 1


@pytest.mark.parametrize("args", [(0,) * 7, (In(bytes(7), {0: Out(1)}),), (In(bytes(16), {9: Out(1)}),)])
def test_calls_that_cannot_be(protocol, args):
    with pytest.raises(BadInput):
        Call(protocol, 0, args)


def test_errno_is_named():
    from harness.link.errors import GuestOSError

    with pytest.raises(GuestOSError, match="open /x: No such file") as caught:
        SyscallResult(-2, ()).checked("open /x")
    assert (caught.value.errno, caught.value.observed) == (2, "ENOENT")
    assert SyscallResult(-4096, ()).checked("lseek").value == -4096
