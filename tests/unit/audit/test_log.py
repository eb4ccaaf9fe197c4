# SPDX-License-Identifier: MIT
"""What the kernel's log says about a driver, in words that kernels have really said."""

from pathlib import Path

import pytest

from harness.audit import Book, Direction, Event, Kind, Sites, findings, read_log
from harness.audit.code import ModuleCode
from harness.audit.log import faults

TO, FROM, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BIDIRECTIONAL
REFUSED = """\
<4>[    0.983576] ------------[ cut here ]------------
<4>[    0.986461] ring ring.0: rejecting DMA map of vmalloc memory
<4>[    0.987011] WARNING: CPU: 0 PID: 93 at include/linux/dma-mapping.h:332 ask+0x138/0x160 [ring]
<4>[    0.990480] Modules linked in: ring(OE+)
<4>[    0.993166] CPU: 0 PID: 93 Comm: init Tainted: G           OE      6.1.0-56-cloud-amd64 #1
<4>[    0.995217] RIP: 0010:ask+0x138/0x160 [ring]
<4>[    0.997019] RSP: 0018:ffffc9000061f958 EFLAGS: 00000286
<4>[    1.002146] Call Trace:
<4>[    1.002993]  <TASK>
<4>[    1.003340]  probe+0x16/0x42 [ring]
<4>[    1.003530]  ? platform_probe+0x44/0x90
<4>[    1.004737]  really_probe+0xcc/0x390
<4>[    1.016674]  </TASK>
<4>[    1.016858] ---[ end trace 0000000000000000 ]---
"""
DMAR = (
    "<3>[    3.032925] DMAR: [DMA {} NO_PASID] Request device [00:02.0] fault addr {:#x}"
    " [fault reason 0x05] PTE Write access is not set\n"
)
PAGE, BUS, PHYSICAL = 4096, 0xFFFF_F000, 0x587_2000
AFTER = 2_900_000_000
MAPPED = {"device": 1, "name": "0000:00:02.0", "bus": BUS, "size": 100, "physical": PHYSICAL, "time": AFTER}


def book_of(*rows):
    book = Book()
    book.replay(Event(number, kind, **{**MAPPED, **fields}) for number, (kind, fields) in enumerate(rows))
    assert book.violations == []
    return book


def told(text, *rows):
    (one,) = read_log(text, book_of(*rows), Sites({}.get))
    return one


def mapped(direction=TO, **fields):
    return Kind.MAP_PAGE, {"direction": direction, **fields}


def unmapped(direction=TO, **fields):
    return Kind.UNMAP_PAGE, {"direction": direction, **fields}


def test_a_refused_mapping():
    (one,) = read_log(REFUSED, Book(), Sites({}.get))
    assert one.rule == "dma-from-vmalloc"  # nobody says that it was a stack
    assert (one.event.driver, one.event.name, one.event.module) == ("ring", "ring.0", "ring")
    assert (one.event.number, one.event.time) == (-1, 983_576_000)
    assert [frame.symbol for frame in one.place] == ["ask", "probe", "really_probe"]
    assert one.place[0].exact


@pytest.mark.parametrize(
    ("function", "rule"), [("from_stack", "dma-from-stack"), ("from_vmalloc", "dma-from-vmalloc")]
)
def test_the_debug_information_knows_a_stack(ring, function, rule):
    code = ModuleCode.read(ring)
    text, at = code.text, 0
    start = int(text.functions.addresses[text.functions.names.index(function)])
    at = next(at for at in range(start + 5, len(text.image)) if text.called(at) == "warn") - 5
    frame = code.frame(at, exact=True)
    said = REFUSED.replace("ask+0x138/0x160", f"{function}+{frame.offset:#x}/{frame.size:#x}")
    sites = Sites({"ring": ring}.get)
    (one,) = read_log(said, Book(), sites)
    assert one.rule == rule
    (found,) = findings([one], sites)
    mark = f"/* HERE: {function.removeprefix('from_')} */"
    source = (Path(__file__).with_name("ring.c")).read_text().splitlines()
    assert mark in source[found.site.line - 1]


@pytest.mark.parametrize(
    "text",
    ["", "a line\n", REFUSED.replace("rejecting DMA map of", "something else about"), "[DMA Read] of a book"],
)
def test_a_log_without_anything(text):
    assert read_log(text, Book(), Sites({}.get)) == []


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        (DMAR.format("Write", BUS), (3_032_925_000, "00:02.0", BUS, True)),
        (DMAR.format("Read", 0x1_0000_0000), (3_032_925_000, "00:02.0", 0x1_0000_0000, False)),
        (
            "DMAR: [DMA Read] Request device [3b:00.1] PASID ffffffff fault addr fe000 [fault reason 06] x\n",
            (0, "3b:00.1", 0xFE000, False),
        ),
        (
            "virtio_iommu virtio1: page fault from EP 24 at 0xfffff010 [W]\n",
            (0, "00:03.0", 0xFFFF_F010, True),
        ),
        (
            "[    2.500000] virtio_iommu virtio1: domain fault from EP 257 at 0x10 [RX]\n",
            (2_500_000_000, "01:00.1", 0x10, False),
        ),
    ],
)
def test_a_fault(line, seen):
    (one,) = faults("[    0.1] before\n" + line)
    assert (one.time, one.device, one.address, one.writes) == seen
    assert not one.text.startswith("[ ")


def test_a_write_where_only_reading_is_allowed():
    one = told(DMAR.format("Write", BUS), mapped(TO))
    assert (one.rule, one.event.number) == ("wrong-iommu-permission", 0)
    assert one.evidence.endswith(f"100 bytes at {BUS:#x} are mapped TO_DEVICE")
    assert one.evidence.startswith("DMAR: [DMA Write")


def test_a_write_that_was_allowed_once():
    one = told(DMAR.format("Write", BUS), mapped(FROM), unmapped(FROM))
    assert (one.rule, one.event.kind) == ("use-after-unmap", Kind.UNMAP_PAGE)


def test_what_should_have_been_reached():
    one = told(DMAR.format("Read", BUS), mapped(BOTH))
    assert (one.rule, one.event.number) == ("unreachable-bus-address", 0)


def test_the_last_that_was_there_is_meant():
    rows = [mapped(TO), unmapped(TO), mapped(FROM), mapped(TO, time=AFTER + 10**9)]
    one = told(DMAR.format("Read", BUS), *rows)
    assert (one.rule, one.event.number) == ("wrong-iommu-permission", 2)


def test_the_logs_clock_is_a_little_behind():
    rows = [mapped(FROM), unmapped(FROM), mapped(TO, time=3_060_000_000)]
    assert told(DMAR.format("Write", BUS), *rows).rule == "wrong-iommu-permission"


def test_a_physical_address():
    one = told(DMAR.format("Read", PHYSICAL), (Kind.ALLOC, {"coherent_mask": (1 << 64) - 1}))
    assert (one.rule, one.event.number) == ("virt-to-phys-as-bus", 0)
    assert f"mapped at {BUS:#x}" in one.evidence


def test_an_overrun_is_the_nearest_mappings():
    rows = [mapped(), mapped(bus=BUS - 16 * PAGE, physical=0x9000)]
    one = told(DMAR.format("Read", BUS + PAGE), *rows)
    assert (one.rule, one.event.number) == ("unreachable-bus-address", 0)
    assert one.evidence.endswith(f"nearest are 100 bytes at {BUS:#x}")


@pytest.mark.parametrize("rows", [[], [mapped(name="0000:00:03.0")]])
def test_an_address_that_is_nobodys(rows):
    one = told(DMAR.format("Read", BUS), *rows)
    assert (one.rule, one.entry) == ("unreachable-bus-address", None)
    assert (one.event.number, one.event.name) == (-1, "0000:00:02.0")
