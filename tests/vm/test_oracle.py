# SPDX-License-Identifier: MIT
"""The oracle against real kernels, and against the other readers QEMU has."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import replace

import pytest

from harness.errors import HostLacks
from harness.iokit import (
    kIOMapInhibitCache,
    kIOMapWriteCombineCache,
    kIOMapWriteThruCache,
    kIOMemoryPhysicallyContiguous,
)
from harness.link import Guest, GuestOptions, Nr, Out
from harness.oracle import MemoryType, Oracle, PhysRange, Unmapped
from harness.oracle.paging import Tables
from harness.oracle.scan import scan

LINUX_PAT = 0x0407050600070106  # WB WC UC- UC WB WP UC- WT: arch/x86/mm/pat/memtype.c:pat_init
FOUR_SLOTS = 0x0007010600070106  # the same twice four, for processors whose PAT4..7 are broken
RESET_PAT = 0x0007040600070406
SYSLOG, SYSLOG_READ_ALL = 103, 3
READ_WRITE, PRIVATE_ANONYMOUS, NO_FD = 3, 0x22, (1 << 64) - 1
MIB, GIB = 1 << 20, 1 << 30
WRITABLE, USER, PWT, PCD = 1 << 1, 1 << 2, 1 << 3, 1 << 4


def monitor(machine, line):
    return machine.qmp.execute("human-monitor-command", **{"command-line": line})


def kernel_log(guest):
    size = 512 * 1024
    told = guest.syscall(SYSLOG, SYSLOG_READ_ALL, Out(size), size, what="syslog").outputs[0]
    return told.decode(errors="replace")


def assert_at_rest(machine, view):
    assert view.direct_map_anomalies() == ()
    assert view.uniform
    ram = machine.ram.size
    assert ram - 4 * MIB <= view.direct_map.coverage <= ram


def test_default_machine(guest, oracle):
    with oracle.frozen() as view:
        assert [cpu.pat for cpu in view.cpus] == [LINUX_PAT] * guest.options.cpus
        assert_at_rest(guest.machine, view)
        assert view.mtrr_type(16 * MIB) is MemoryType.WB
        assert view.mtrr_type(3 * GIB + 512 * MIB) is MemoryType.UC  # device memory below 4 GiB


def test_the_kernel_says_the_same_about_its_pat(guest, oracle):
    told = re.search(r"x86/PAT: Configuration \[0-7\]: (.+)", kernel_log(guest))
    with oracle.frozen() as view:
        seen = [kind.value for kind in view.cpus[0].type_rules().pat]
    assert told is not None
    assert seen == told[1].split()


def test_registers_as_the_monitor_prints_them(machine, oracle):
    with oracle.frozen() as view:
        blocks = re.split(r"(?m)^CPU#\d+", monitor(machine, "info registers -a"))[1:]
        assert len(blocks) == len(view.cpus)
        for cpu, text in zip(view.cpus, blocks, strict=True):
            for name, value in (("CR0", cpu.cr0), ("CR3", cpu.cr3), ("CR4", cpu.cr4), ("EFER", cpu.efer)):
                assert int(re.search(rf"\b{name}=([0-9a-f]+)", text)[1], 16) == value, name


def test_every_leaf_as_the_monitor_lists_them(machine, oracle):
    """`info tlb` walks the tables with code of its own (target/i386/monitor.c).

    It loses the PAT bit of small leaves and prints no size; addresses and the rest are compared.
    """
    line = re.compile(r"([0-9a-f]{16}): ([0-9a-f]{16}) (\S{9,})")
    with oracle.frozen() as view:
        cpu = view.cpus[0]
        listed = {
            (int(va, 16), int(pa, 16), "C" in flags, "T" in flags, "U" in flags, "W" in flags)
            for va, pa, flags in line.findall(monitor(machine, "info tlb"))
        }
        found = scan(Tables(machine.ram), [cpu.cr3], view.levels)
        own = {
            (
                va,
                pa,
                bool(entry & PCD),
                bool(entry & PWT),
                bool(entry & USER),
                bool(entry & WRITABLE),
            )
            for va, pa, entry in zip(found.va.tolist(), found.pa.tolist(), found.entry.tolist(), strict=True)
        }
    assert len(listed) > 1000
    assert own == listed


def test_translations_as_the_monitor_does_them(machine, oracle):
    """The monitor translates with the CR3 that is loaded; the default machine has no page-table isolation."""
    with oracle.frozen() as view:
        leaves = view.aliases([PhysRange(n * 8 * MIB + 2 * MIB, 4096) for n in range(16)])
        kernel = [leaf for leaf in leaves if not leaf.user]
        assert len(kernel) >= 16
        for leaf in kernel[::7]:
            for va in (leaf.va, leaf.va + leaf.size - 1):
                told = re.search(r"gpa: (0x[0-9a-f]+)", monitor(machine, f"gva2gpa {va:#x}"))
                assert int(told[1], 16) == view.physical_of(va, 1)[0].start == leaf.pa + va - leaf.va
        hole = view.direct_map.base + (1 << 45)
        assert "Unmapped" in monitor(machine, f"gva2gpa {hole:#x}")
        assert view.walk(hole) is None


def test_memory_as_the_monitor_reads_it(machine, oracle):
    with oracle.frozen() as view:
        start = view.cpus[0].cr3 & ~0xFFF
        words = re.findall(r"0x([0-9a-f]{16})", monitor(machine, f"xp /512gx {start:#x}"))
        told = b"".join(int(word, 16).to_bytes(8, "little") for word in words)
        assert view.read(start, 4096) == told
        path = machine.workdir / "second-reader"
        machine.qmp.execute("pmemsave", val=start, size=8192, filename=str(path))
        try:
            assert path.read_bytes() == view.read(start, 8192)
        finally:
            path.unlink()


def test_memory_of_a_sleeping_process_is_found(guest, oracle):
    """The agent waits for requests: its address space need not be on any vCPU."""
    size, pattern = 64 * 1024, os.urandom(64 * 1024)
    guest.write_file("/tmp/pattern", pattern)
    address = guest.syscall(Nr.MMAP, 0, size, READ_WRITE, PRIVATE_ANONYMOUS, NO_FD, 0, what="mmap").value
    fd = guest.open("/tmp/pattern", os.O_RDONLY)
    try:
        assert guest.syscall(Nr.READ, fd, address, size, what="read").value == size
        with oracle.frozen() as view:
            places = []
            for space in view.address_spaces:
                try:
                    places.append(view.physical_of(address, size, cr3=space))
                except Unmapped:
                    continue
            (parts,) = places
            assert b"".join(view.read(part.start, part.length) for part in parts) == pattern
            mine = [leaf for leaf in view.aliases(parts) if leaf.va in range(address, address + size)]
            assert sum(leaf.size for leaf in mine) >= size
            assert all(leaf.user and leaf.effective is MemoryType.WB for leaf in mine)
    finally:
        guest.close(fd)
        guest.syscall(Nr.MUNMAP, address, size, what="munmap")


def test_a_wrong_type_in_the_direct_map_does_not_stay_hidden(oracle):
    """Sabotage from outside, undone before the guest goes on: the proof that the check can fail."""
    with oracle.frozen() as view:
        page = view.direct_map.base + 64 * MIB
        leaf = view.walk(page)
        slot = find_entry(view, leaf)
        view.write(slot, (leaf.entry | PWT).to_bytes(8, "little"))
        try:
            assert [(odd.va, odd.pat_index, odd.effective) for odd in view.direct_map_anomalies()] == [
                (leaf.va, 1, MemoryType.WC)
            ]
            assert MemoryType.WC in {alias.effective for alias in view.aliases([PhysRange(leaf.pa, 1)])}
        finally:
            view.write(slot, leaf.entry.to_bytes(8, "little"))
        assert view.direct_map_anomalies() == ()


def find_entry(view, leaf):
    """The physical address of the entry itself, found by descending with nothing but reads."""
    table = view.address_spaces[0]
    for level in range(view.levels, leaf.level - 1, -1):
        slot = table + 8 * (leaf.va >> (12 + 9 * (level - 1)) & 511)
        table = int.from_bytes(view.read(slot, 8), "little") & 0x000FFFFFFFFFF000
    return slot


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(kIOMemoryPhysicallyContiguous, {MemoryType.WB}, id="default"),
        pytest.param(kIOMapInhibitCache, {MemoryType.UC}, id="inhibit"),
        pytest.param(kIOMapWriteCombineCache, {MemoryType.WC}, id="write-combine"),
        pytest.param(kIOMapWriteThruCache, {MemoryType.WT}, id="write-through"),
    ],
)
@pytest.mark.parametrize("capacity", [4096, 2 * MIB, 6 * MIB], ids=["4K", "2M", "6M"])
def test_buffers_of_every_type(oracle, iobmd, options, expected, capacity):
    """Small leaves, one large leaf, and chunks under a mapping of their own."""
    if capacity > 4 * MIB:
        options &= ~kIOMemoryPhysicallyContiguous
    with iobmd.withOptions(options, capacity) as buf:
        data = os.urandom(9000)[: min(9000, capacity)]
        assert buf.writeBytes(0, data) == len(data)
        with oracle.frozen() as view:
            assert oracle.types_of(buf) == expected
            assert oracle.types_of_many([buf, buf]) == [expected] * 2
            assert oracle.read(buf, 0, len(data)) == data
            parts = oracle.physical_of(buf)
            assert sum(part.length for part in parts) == buf.storage
            if expected == {MemoryType.WB}:
                assert view.direct_map_anomalies() == ()
            else:
                odd = view.direct_map_anomalies()
                assert sum(leaf.size for leaf in odd) >= buf.storage
        oracle.write(buf, 1, b"from outside")
        assert buf.readBytes(1, 12) == b"from outside"
        claimed = [(segment.address, segment.length) for segment in buf.segments()]
    assert [(part.start, part.length) for part in parts] == claimed
    with oracle.frozen() as view:
        assert view.direct_map_anomalies() == ()


def test_the_guest_goes_on_as_if_nothing_had_happened(guest, oracle):
    for _ in range(20):
        with oracle.frozen() as view:
            view.direct_map_anomalies()
        assert guest.link.ping(b"still there") == b"still there"
    assert guest.machine.console.panic is None


def test_milliseconds_are_recorded(oracle, record_property):
    """Recorded for the report; how fast a shared host is proves nothing, so no figure is asserted."""
    before = len(oracle.milliseconds)
    for _ in range(5):
        with oracle.frozen() as view:
            view.direct_map_anomalies()
            start = view.direct_map.base + 32 * MIB
            view.aliases(view.physical_of(start, 64 * 1024))
    fresh = oracle.milliseconds[before:]
    assert len(fresh) == 5
    record_property("oracle_milliseconds", [round(each, 2) for each in fresh])
    last = oracle.timings[-1].capture
    steps: dict[str, float] = {}
    for each in oracle.timings:
        if each.capture == last:
            steps[each.step] = round(steps.get(each.step, 0) + each.milliseconds, 2)
    record_property("oracle_steps", steps)
    print(f"oracle: {min(fresh):.1f}-{max(fresh):.1f} ms per capture; the last one: {steps}")


@pytest.mark.parametrize(
    ("options", "pat"),
    [
        pytest.param({"cmdline": ("nopat",)}, RESET_PAT, id="nopat"),
        pytest.param({"cpu": "kvm64", "machine": "pc"}, FOUR_SLOTS, id="pc-kvm64-kpti"),
        pytest.param({"cpus": 2, "memory_mib": 6144}, LINUX_PAT, id="q35-6G-smp2"),
        pytest.param({"memory_mib": 4096, "machine": "pc"}, LINUX_PAT, id="pc-4G"),
    ],
)
def test_other_machines(guest, guest_image, options, pat):
    look_at_another(guest, guest_image, options, pat, levels=4)


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        pytest.param({}, 5, id="five-levels-kaslr"),
        pytest.param({"cmdline": ("nokaslr",)}, 5, id="five-levels"),
        pytest.param({"cpu": "max,la57=off"}, 4, id="four-levels-kaslr"),
        pytest.param({"cpu": "Skylake-Server", "cpus": 2}, 4, id="kaslr-kpti-smp2"),
    ],
)
def test_packed_kernels(guest, guest_image, options, levels):
    """Only the kernel's own decompressor moves the kernel (KASLR) and turns five levels on."""
    kernel = replace(guest_image.kernel, boot_image=guest_image.kernel.vmlinuz)
    look_at_another(guest, replace(guest_image, kernel=kernel), options, LINUX_PAT, levels=levels)


def look_at_another(guest, image, options, pat, *, levels):
    wanted = GuestOptions(accel=guest.options.accel, boot_timeout=120.0, **options)
    with ExitStack() as stack:
        try:
            other = stack.enter_context(Guest(image, wanted))
        except HostLacks as lack:
            pytest.skip(str(lack))
        with Oracle(other.machine).frozen() as view:
            assert view.levels == levels
            assert [cpu.pat for cpu in view.cpus] == [pat] * wanted.cpus
            assert_at_rest(other.machine, view)
            assert len(view.aliases([PhysRange(64 * MIB, 1)])) >= 1
        assert other.link.ping(b"on") == b"on"
