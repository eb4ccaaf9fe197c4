# SPDX-License-Identifier: MIT
"""The host's way to the teaching device: found behind bridges, programmed while the guest stands still."""

from contextlib import contextmanager

import pytest

from harness.errors import BadInput
from harness.oracle import Edu, OracleError
from harness.oracle.device import MOST

BAR = 0xFEA0_0000
RAM = bytes(range(256)) * 64


class Port:
    """A PCI bus with bridges, and edu's registers: its moves end when somebody has looked three times."""

    def __init__(self, machine, place=0x010, bridges=()):
        self.machine, self.place = machine, place
        self.config = {place: {0: 0x11E8_1234, 4: 0x0010_0103, 0x10: BAR}}
        for at, behind in bridges:
            self.config[at] = {0: 0x000C_1B36, 0x0C: 1 << 16, 0x18: behind << 8}
        self.at, self.registers = 0, {0x98: 0}
        self.ram, self.inside = bytearray(RAM), bytearray(4096)
        self.looks = 0

    def outl(self, port, value):
        assert self.machine.still  # or the guest's own accesses would come in between
        if port == 0xCF8:
            assert value >> 31
            self.at = value
        else:
            assert port == 0xCFC
            self.config[self.at >> 8 & 0xFFFF][self.at & 0xFC] = value

    def inl(self, port):
        assert port == 0xCFC
        return self.config.get(self.at >> 8 & 0xFFFF, {}).get(
            self.at & 0xFC, 0 if self.at >> 8 & 0xFFFF in self.config else 0xFFFF_FFFF
        )

    def writeq(self, address, value):
        assert self.machine.still
        assert self.config[self.place][4] & 6 == 6
        self.registers[address - BAR] = value
        self.looks = 0

    def readq(self, address):
        assert address == BAR + 0x98
        self.looks += 1
        if self.registers[0x98] & 1 and self.looks == 3:
            self._move()
        return self.registers[0x98]

    def _move(self):
        source, target, count = (self.registers[at] for at in (0x80, 0x88, 0x90))
        if self.registers[0x98] & 2:
            self.ram[target : target + count] = self.inside[source - 0x40000 :][:count]
        else:
            self.inside[target - 0x40000 : target - 0x40000 + count] = self.ram[source : source + count]
        self.registers[0x98] = 0


class Machine:
    def __init__(self, **port):
        self.still = False
        self.qtest = Port(self, **port)

    @contextmanager
    def stopped(self):
        self.still = True
        yield
        self.still = False


@pytest.mark.parametrize(
    ("place", "bridges", "name"),
    [
        (0x010, (), "0000:00:02.0"),
        (0x0F8, (), "0000:00:1f.0"),
        (0x208, ((0x020, 1), (0x100, 2)), "0000:02:01.0"),
    ],
)
def test_the_device_is_found_wherever_it_is(place, bridges, name):
    machine = Machine(place=place, bridges=bridges)
    assert Edu(machine).name == name
    assert machine.qtest.config[place][4] == 0x0107  # status bits would be cleared by writing them


def test_a_machine_without_one_says_how_to_have_one():
    machine = Machine()
    del machine.qtest.config[0x010]
    with pytest.raises(OracleError, match="no edu device"):
        Edu(machine)


def test_a_device_that_was_forgotten_says_so():
    machine = Machine()
    machine.qtest.config[0x010][0x10] = 0
    with pytest.raises(OracleError, match="no registers"):
        Edu(machine)


def test_a_bridge_that_nobody_has_set_up_is_no_endless_loop():
    machine = Machine(bridges=((0x020, 0),))
    assert Edu(machine).name == "0000:00:02.0"


@pytest.mark.parametrize("length", [1, 64, MOST, MOST + 1, 2 * MOST + 7])
def test_bytes_are_copied(length):
    machine = Machine()
    Edu(machine).copy(256 + 3, 8192, length)
    assert machine.qtest.ram[8192 : 8192 + length] == RAM[259 : 259 + length]
    assert machine.qtest.ram[:8192] == RAM[:8192]
    assert machine.qtest.ram[8192 + length :] == RAM[8192 + length :]


@pytest.mark.parametrize("length", [0, -1, MOST + 1, 4096])
def test_a_length_that_qemu_would_die_of_is_refused(length):
    with pytest.raises(BadInput, match="cannot move"):
        Edu(Machine()).take(0, length)


def test_a_device_that_does_not_finish_is_named(monkeypatch):
    monkeypatch.setattr("harness.oracle.device._SECONDS", 0.01)
    machine = Machine()
    edu = Edu(machine)
    machine.qtest._move = lambda: None
    with pytest.raises(OracleError, match="has not moved 64 bytes"):
        edu.take(0, 64)
