# SPDX-License-Identifier: MIT
"""Bus addresses proved by a device: driven by its own driver, and by the host behind that driver's back.

What a driver was given is read in the ledger; what is at the end of it, in RAM, by the page tables. Without
an IOMMU, behind Intel's in both of its modes, and behind virtio's, whose tables nobody can read: there the
bytes that a device moves are the only proof.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from audit_stage import KERNELS, Region, Stage, log_of

from harness.audit import Book, Direction, Entry, Kind, Ledger, Outside, Sites, build_ledger
from harness.audit.log import read_log
from harness.images import SilentProgress, build_module
from harness.link import Guest, GuestOptions, In, Nr
from harness.oracle import (
    Domain,
    Edu,
    Mode,
    Oracle,
    StoppedTransfer,
    View,
    ViewExpired,
    read_fault,
    read_root,
    requester,
)

PAGE = 4096
LENGTH = 1024
MANY = 2000
TO, FROM, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BIDIRECTIONAL
EDU = "edu,dma_mask=0xffffffffffffffff"
MACHINES = {
    "none": GuestOptions(devices=(EDU,)),
    # At once: an unmapped address is forgotten by the unit before the driver goes on.
    "intel": GuestOptions(
        devices=("intel-iommu,intremap=off", EDU), cmdline=("intel_iommu=on", "iommu.strict=1")
    ),
    "lazy": GuestOptions(devices=("intel-iommu,intremap=off", EDU), cmdline=("intel_iommu=on",)),
    "scalable": GuestOptions(
        devices=("intel-iommu,intremap=off,x-scalable-mode=on", EDU),
        cmdline=("intel_iommu=on,sm_on", "iommu.strict=1"),
    ),
    "pass-through": GuestOptions(
        devices=("intel-iommu,intremap=off", EDU), cmdline=("intel_iommu=on", "iommu=pt")
    ),
    "virtio": GuestOptions(devices=("virtio-iommu-pci", EDU), cmdline=("iommu.strict=1",)),
}
TRANSLATED = ("intel", "scalable", "virtio")
CASES = [
    *((kernel, machine) for kernel in KERNELS for machine in ("none", "intel")),
    (KERNELS[1], "scalable"),
    (KERNELS[0], "pass-through"),
    (KERNELS[1], "virtio"),  # Linux 6.1 has no driver for it in Debian's kernels
]


@dataclass
class Proof:
    """A guest with the witness in it, its ledger, and the host's hands on its device.

    Attributes:
        machine: which of `MACHINES`.
        guest: the guest.
        oracle: looks at it.
        book: what is alive in it.
        outside: judges that.
        edu: the device, driven by the host.
        sites: names for the calls in the book.
    """

    machine: str
    guest: Guest
    oracle: Oracle
    book: Book
    outside: Outside
    edu: Edu
    sites: Sites

    @property
    def protected(self) -> bool:
        """Whether something stands between the device and RAM."""
        return self.machine in TRANSLATED

    def mapping(self, direction: Direction) -> Entry:
        """Return the small mapping of one direction."""
        small = (entry for entry in self.book.mappings if entry.made.size == LENGTH)
        return next(entry for entry in small if entry.direction is direction)

    @property
    def ring(self) -> Entry:
        """Return the coherent buffer."""
        (entry,) = (one for one in self.book.buffers if one.made.driver == "witness")
        return entry

    def at(self, entry: Entry, length: int = LENGTH) -> Region:
        """Return the beginning of an entry's memory, by its kernel address."""
        return Region(entry.made.virtual, length)

    def fill(self, entry: Entry, byte: int) -> bytes:
        """Fill the beginning of an entry's memory from outside, with nothing a device has moved so far."""
        data = bytes((byte + number) % 256 for number in range(LENGTH))
        self.oracle.write(self.at(entry), 0, data)
        return data

    def bytes_of(self, entry: Entry) -> bytes:
        return self.oracle.read(self.at(entry), 0, LENGTH)

    def stopped(self, move: Callable[[], object]) -> list[tuple[str, Entry | None]]:
        """Return what the kernel's log shows of transfers that were stopped during a move: rule and whose."""
        before = len(log_of(self.guest))
        move()
        said = log_of(self.guest)[before:]
        found = [(one.rule, one.entry) for one in read_log(said, self.book, self.sites)]
        return [one for number, one in enumerate(found) if one not in found[:number]]

    def told(self, stopped: list[tuple[str, Entry | None]], rule: str, entry: Entry) -> bool:
        """Tell whether that is what the kernel has said, which tells a few faults of every 5 s."""
        return stopped == [(rule, entry)] if self.protected and stopped else not stopped

    def recorded(self, address: int, *, writes: bool) -> bool:
        """Tell whether the unit has written down that it stopped this last; of virtio's, nobody can tell."""
        if self.machine not in ("intel", "scalable"):
            return True
        bus, devfn = requester(self.edu.name)
        wanted = StoppedTransfer(bus << 8 | devfn, address & -PAGE, writes, 5 if writes else 6)
        return read_fault(self.guest.machine.qmp.hmp) == wanted


@contextmanager
def shown(stage: Stage, kernel: str, machine: str, many: int = 0) -> Iterator[Proof]:
    image = stage.image(kernel)
    build = build_module(image.kernel, Path(__file__).with_name("witness"), SilentProgress(), name="witness")
    with ExitStack() as stack:
        guest = stack.enter_context(Guest(image, MACHINES[machine]))
        ledger = stack.enter_context(Ledger(guest, build_ledger(image.kernel, SilentProgress())))
        oracle = Oracle(guest.machine)
        outside = Outside(guest, oracle, ledger.drain)
        outside.begin()
        guest.load_module(build.ko.read_bytes(), f"many={many}")
        book = Book()
        sites = Sites.of_guest(guest, {"witness": build.ko_debug})
        events = ledger.drain()
        sites.follow(events)
        book.replay(events)
        yield Proof(machine, guest, oracle, book, outside, Edu(guest.machine), sites)
        guest.unload_module("witness")
        assert outside.leftovers(book) == []
        assert book.violations == []
        assert (len(book.buffers), len(book.mappings), ledger.lost, ledger.missed) == (0, 0, 0, 0)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def proof(request: pytest.FixtureRequest, stage: Stage) -> Iterator[Proof]:
    with shown(stage, *request.param) as one:
        yield one


def test_nothing_is_wrong_with_a_good_driver(proof):
    assert proof.outside.look(proof.book) == []
    assert proof.book.violations == []


def test_a_device_cannot_write_what_is_mapped_for_it_to_read(proof):
    """Without an IOMMU nothing stops it, which is why the driver has to be right.

    Before the device has read there: QEMU's unit reports what it finds out by walking its tables, and refuses
    what it remembers without a word (hw/i386/intel_iommu.c, vtd_do_iommu_translate).
    """
    to, source = proof.mapping(TO), proof.mapping(BOTH)
    proof.fill(to, 1)
    data = proof.fill(source, 2)
    stopped = proof.stopped(lambda: proof.edu.copy(source.made.bus, to.made.bus, LENGTH))
    assert (proof.bytes_of(to) == data) is not proof.protected
    assert stopped == ([("wrong-iommu-permission", to)] if proof.protected else [])
    assert proof.recorded(to.made.bus, writes=True)


def test_bus_addresses_are_physical_ones_only_where_nothing_translates(proof):
    entries = [proof.mapping(way) for way in (TO, FROM, BOTH)]
    same = {entry.made.bus == entry.made.physical for entry in entries}
    assert same == {not proof.protected}


def test_the_driver_has_moved_bytes_with_its_device(proof):
    ring = proof.ring
    region = Region(ring.made.virtual, ring.made.size)
    assert proof.oracle.read(region, ring.made.size - 64, 64) == bytes([0xA5]) * 64
    assert proof.oracle.read(proof.at(proof.mapping(FROM)), 0, 64) == bytes([0xA5]) * 64


@pytest.mark.parametrize(("source", "target"), [(TO, FROM), (BOTH, FROM), (TO, BOTH)])
def test_the_host_moves_bytes_with_the_drivers_addresses(proof, source, target):
    given, taken = proof.mapping(source), proof.mapping(target)
    data = proof.fill(given, 10 * source + target)
    assert proof.bytes_of(taken) != data
    proof.edu.copy(given.made.bus, taken.made.bus, LENGTH)
    assert proof.bytes_of(taken) == data


def test_the_device_reaches_every_page_of_a_coherent_buffer(proof):
    ring, into = proof.ring.made, proof.mapping(FROM)
    for offset in range(0, ring.size, PAGE):
        region = Region(ring.virtual + offset, LENGTH)
        data = bytes((offset // PAGE + number) % 251 for number in range(LENGTH))
        proof.oracle.write(region, 0, data)
        proof.edu.copy(ring.bus + offset, into.made.bus, LENGTH)
        assert proof.bytes_of(into) == data


def test_the_device_reaches_every_entry_of_a_list(proof):
    (listed,) = (entry.made for entry in proof.book.mappings if entry.made.kind is Kind.MAP_SG)
    ranges = [(piece.bus, piece.bus_length) for piece in listed.pieces if piece.bus_length]
    addresses = [bus + at for bus, length in ranges for at in range(0, length, PAGE)]
    assert len(addresses) == len(listed.pieces)
    into = proof.mapping(FROM)
    for number, (piece, bus) in enumerate(zip(listed.pieces, addresses, strict=True)):
        data = bytes([number + 1]) * LENGTH
        with proof.oracle.frozen() as view:
            view.write(piece.physical, data)
        proof.edu.copy(bus, into.made.bus, LENGTH)
        assert proof.bytes_of(into) == data


def test_a_physical_address_is_no_bus_address(proof):
    """It looks right, and is where nothing translates."""
    source, into = proof.mapping(BOTH), proof.mapping(FROM)
    data = proof.fill(source, 3)
    stopped = proof.stopped(lambda: proof.edu.copy(source.made.physical, into.made.bus, LENGTH))
    assert (proof.bytes_of(into) == data) is not proof.protected
    assert proof.told(stopped, "virt-to-phys-as-bus", source)
    assert proof.recorded(source.made.physical, writes=False)


def test_a_page_behind_a_buffer_is_out_of_reach(proof):
    """The addresses behind the ring are mapped to nothing: it was the first thing to be allocated."""
    ring, into = proof.ring, proof.mapping(FROM)
    before = proof.fill(into, 6)
    behind = ring.made.bus + ring.made.size
    if proof.protected:
        stopped = proof.stopped(lambda: proof.edu.copy(behind, into.made.bus, 64))
        assert proof.bytes_of(into)[64:] == before[64:]
        assert proof.told(stopped, "unreachable-bus-address", ring)
        assert proof.recorded(behind, writes=False)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda made: replace(made, bus=made.bus + (1 << 40)), "unreachable-bus-address"),
        (lambda made: replace(made, physical=made.physical + PAGE), "not-where-claimed"),
        (lambda made: replace(made, direction=Direction.BIDIRECTIONAL), "wrong-iommu-permission"),
    ],
)
def test_an_address_that_only_looks_right_is_found(proof, change, rule):
    entry = proof.mapping(TO)
    book = Book()
    book.mappings.add(entry.made.device, Entry(change(entry.made)))
    found = {one.rule for one in Outside(proof.guest, proof.oracle).look(book)}
    if proof.machine in ("intel", "scalable"):
        assert found == {rule}
    elif proof.machine == "virtio" or rule == "wrong-iommu-permission":
        assert found == set()  # nobody can see it, but for the device itself
    else:
        assert found == {"not-where-claimed"}


def test_a_kernel_address_that_leads_elsewhere_is_found(proof):
    made = proof.ring.made
    book = Book()
    book.buffers.add(made.device, Entry(replace(made, virtual=made.virtual + PAGE, size=PAGE, pieces=())))
    found = Outside(proof.guest, proof.oracle).look(book)
    assert "not-where-claimed" in {one.rule for one in found}


def test_the_domain_of_the_device(proof):
    if proof.machine in ("none", "virtio"):
        return  # nothing of the kind is in this machine
    with proof.oracle.frozen() as view:
        root = read_root(proof.guest.machine.qmp.hmp)
        unit = view.remapping(root)
        domain = unit.domain(*requester(proof.edu.name))
        assert unit.scalable is (proof.machine == "scalable")
        assert (domain.mode is Mode.UNTRANSLATED) is (proof.machine == "pass-through")
        assert unit.domain(0, 0xE0) is None  # nothing is in that slot
    with pytest.raises(ViewExpired):
        unit.translate(domain, [0])


def slot_of(view: View, domain: Domain, address: int) -> int:
    """Return where the last entry is that translates a bus address, by a walk of this test's own."""
    table = domain.root
    for level in range(domain.levels, 0, -1):
        slot = table + 8 * (address >> 12 + 9 * (level - 1) & 511)
        if level == 1:
            return slot
        table = int.from_bytes(view.read(slot, 8), "little") & ~0xFFF
    raise AssertionError("no levels")


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda entry: entry & ~3, "unreachable-bus-address"),
        (lambda entry: entry | 2, "wrong-iommu-permission"),
        (lambda entry: entry ^ PAGE, "not-where-claimed"),
    ],
)
def test_a_spoiled_entry_of_the_unit_is_found(proof, spoil, rule):
    if proof.machine not in ("intel", "scalable"):
        return  # no tables in RAM
    to = proof.mapping(TO)
    with proof.oracle.frozen() as view:
        unit = view.remapping(read_root(proof.guest.machine.qmp.hmp))
        domain = unit.domain(*requester(proof.edu.name))
        slot = slot_of(view, domain, to.made.bus)
        good = int.from_bytes(view.read(slot, 8), "little")
        view.write(slot, spoil(good).to_bytes(8, "little"))
    found = proof.outside.look(proof.book)
    with proof.oracle.frozen() as view:
        view.write(slot, good.to_bytes(8, "little"))
    assert [(one.rule, one.entry) for one in found] == [(rule, to)]
    assert proof.outside.look(proof.book) == []


def test_what_is_unmapped_is_out_of_the_tables_and_out_of_reach(proof):
    """The last test of a guest: afterwards nothing is mapped."""
    into, source = proof.mapping(FROM), proof.ring
    before = proof.fill(into, 4)
    proof.fill(source, 5)
    proof.guest.write_file("/sys/module/witness/parameters/undo", b"1")
    assert proof.outside.look(proof.book) == []
    assert len(proof.book.mappings) == 0
    stopped = proof.stopped(lambda: proof.edu.copy(source.made.bus, into.made.bus, LENGTH))
    assert (proof.bytes_of(into) == before) is proof.protected
    assert proof.told(stopped, "use-after-unmap", into)
    assert proof.recorded(into.made.bus, writes=True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_thousands_of_mappings_are_judged_in_one_stopped_moment(stage, kernel):
    with shown(stage, kernel, "intel", many=MANY) as proof:
        assert len(proof.book.mappings) >= MANY
        before = len(proof.oracle.milliseconds)
        assert proof.outside.look(proof.book) == []
        assert len(proof.oracle.milliseconds) == before + 1


def test_what_a_lazy_unit_remembers_is_not_in_its_tables(stage):
    """Entries go with the call; what the unit has remembered goes a little later, and then it is enforced."""
    with shown(stage, KERNELS[1], "lazy") as proof:
        into, source = proof.mapping(FROM), proof.ring
        data = proof.fill(source, 5)
        proof.edu.copy(source.made.bus, into.made.bus, LENGTH)
        assert proof.bytes_of(into) == data
        proof.guest.write_file("/sys/module/witness/parameters/undo", b"1")
        assert proof.outside.look(proof.book) == []
        proof.edu.take(source.made.bus, 64)
        # The kernel flushes by a timer of 10 ms (drivers/iommu/dma-iommu.c: fq_flush_timeout). It has gone
        # off when a later one has, of the guest's only processor: how fast that runs does not matter.
        proof.guest.syscall(Nr.NANOSLEEP, In(struct.pack("<qq", 0, 100_000_000)), 0, what="sleep 0.1 s")
        before = proof.fill(into, 9)
        proof.edu.give(into.made.bus, LENGTH)
        assert proof.bytes_of(into) == before
