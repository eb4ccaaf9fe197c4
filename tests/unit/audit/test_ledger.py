# SPDX-License-Identifier: MIT
"""Reading a ring that is written meanwhile, out of memory that is copied in no order anybody promises."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from harness.audit import Kind, Ledger

HEADER, DIRECTORY, BLOCK, RAM = 0x1000, 0x2000, 0x4000, 0x10000
CAPACITY = 16
TAIL = 128  # bytes; glibc's memmove() reads so many at the end before it begins


class Live(np.ndarray):
    """Memory that its writer goes on with while it is copied, between the copy's end and its beginning."""

    meanwhile = staticmethod(lambda: None)

    def __array_function__(self, func, types, args, kwargs):
        if func is not np.concatenate or args[0][-1].dtype != np.uint8:
            plain = [np.asarray(one).view(np.ndarray) for one in args[0]]
            return func(plain, **kwargs)
        return np.concatenate([copied(one.view(np.ndarray)) for one in args[0]])


def copied(data):
    into = np.empty(len(data), np.uint8)
    into[-TAIL:] = data[-TAIL:]
    Live.meanwhile()
    into[:-TAIL] = data[:-TAIL]
    return into


class Guest:
    """The ring of a ledger in memory, and who writes it."""

    generation = 0

    def __init__(self, layouts):
        self.layouts = layouts
        self.bytes = np.zeros(RAM, np.uint8)
        self.machine = SimpleNamespace(ram=self)
        self.put(DIRECTORY, BLOCK)

    def load_module(self, *_):
        pass

    unload_module = close = load_module

    def open(self, *_):
        return 3

    def ioctl(self, *_):
        layout = self.layouts.struct("dma_ledger_info")
        about = {"capacity": CAPACITY, "header": HEADER, "directory": DIRECTORY, "blocks": 1}
        arg = bytearray(layout.size)
        for name, value in about.items():
            field = layout.fields[name]
            arg[field.offset : field.offset + field.size] = value.to_bytes(field.size, "little")
        return SimpleNamespace(arg=bytes(arg))

    def read(self, at, length):
        data = self.bytes[at : at + length]
        return (copied(data) if at >= BLOCK else data).tobytes()

    def array(self, at, length):
        return self.bytes[at : at + length].view(Live)

    def write(self, at, data):
        self.bytes[at : at + len(data)] = np.frombuffer(data, np.uint8)

    def put(self, at, number):
        self.write(at, number.to_bytes(8, "little"))

    def reserve(self, number):
        self.put(HEADER, number + 1)

    def commit(self, number):
        """Write a record as the module does: its number when the rest is there."""
        record = np.zeros(1, self.layouts.struct("dma_ledger_record").dtype)
        record["kind"], record["frames"], record["size"] = Kind.ALLOC, 1, 4096
        record["stack"][0, 0] = 0x1000 + number
        record["sequence"] = number + 1
        self.write(BLOCK + number * record.itemsize, record.tobytes())


@pytest.fixture
def guest(layouts, monkeypatch):
    monkeypatch.setattr("harness.audit.ledger.Layouts", SimpleNamespace(from_elf=lambda _: layouts))
    monkeypatch.setattr(Live, "meanwhile", lambda: None)
    return Guest(layouts)


@pytest.fixture
def ledger(guest):
    with Ledger(guest, SimpleNamespace(ko=SimpleNamespace(read_bytes=bytes), ko_debug=None)) as one:
        yield one


def stacks(ledger):
    return [(event.number, event.stack) for event in ledger.drain()]


def test_what_is_written_is_read_once(guest, ledger):
    for number in range(3):
        guest.reserve(number)
        guest.commit(number)
    assert stacks(ledger) == [(number, (0x1000 + number,)) for number in range(3)]
    assert stacks(ledger) == []


def test_a_record_that_is_written_while_it_is_copied_is_not_taken_before_it_is_whole(
    guest, ledger, monkeypatch
):
    for number in range(3):
        guest.reserve(number)
    guest.commit(0)
    guest.commit(1)
    monkeypatch.setattr(Live, "meanwhile", lambda: guest.commit(2))
    assert stacks(ledger) == [(0, (0x1000,)), (1, (0x1001,))]
    assert stacks(ledger) == [(2, (0x1002,))]
