# SPDX-License-Identifier: MIT
"""Reading a boot out of the kernel's log."""

import pytest

from harness.bench import kernel_log

LOG = """\
<5>[    0.000000] Linux version 6.1.0-56-amd64
<6>[    0.063548] Memory: 207548K/523768K available
<6>[    0.107153] ftrace: allocated 159 pages with 6 groups
<6>[    0.270509] pid_max: default: 32768 minimum: 301
<7>[    0.300000] calling  acpi_init+0x0/0x4bd @ 1
<7>[    0.310000] calling  nested_init+0x0/0x10 @ 1
<7>[    0.311500] initcall nested_init+0x0/0x10 returned 0 after 0 usecs
<7>[    0.357800] initcall acpi_init+0x0/0x4bd returned 0 after 56000 usecs
<6>[    0.773716] Trying to unpack rootfs image as initramfs...
not a record
<6>[    1.011595] Freeing unused kernel image (initmem) memory: 2824K
<6>[    1.014660] Freeing unused kernel image (rodata/data gap) memory: 1108K
<6>[    1.094879] Run /init as init process
<7>[    1.163000] calling  virtio_console_init+0x0/0xf8 [virtio_console] @ 1
<7>[    1.174000] initcall virtio_console_init+0x0/0xf8 [virtio_console] returned 0 after 11060 usecs
<7>[    1.180000] calling  never_returns+0x0/0xf8 @ 1
<4>[   12.500000] iobmd: loading out-of-tree module taints kernel.
"""


@pytest.fixture
def log():
    return kernel_log.lines(LOG)


def test_records_and_nothing_else(log):
    assert len(log) == LOG.count("\n") - 1
    assert log[-1] == kernel_log.Line(12.5, "iobmd: loading out-of-tree module taints kernel.")


def test_the_first_line_that_shows_a_pattern(log):
    assert kernel_log.first(log, "Freeing unused kernel image") == 1.011595
    assert kernel_log.first(log, "no such line") is None


def test_stretches_end_at_lines_and_a_missing_line_gives_its_time_to_the_next(log):
    marks = kernel_log.marks(log)
    assert list(marks.values()) == [0.063548, 0.107153, 0.270509, 0.773716, 1.011595, 1.094879, 12.5]
    lengths = kernel_log.stretches(marks.items())
    assert sum(lengths.values()) == pytest.approx(12_500)
    assert lengths["kernel: CPU features, alternatives patched in"] == pytest.approx(163.356)


def test_a_line_out_of_order_ends_no_stretch():
    log = kernel_log.lines("<6>[ 2.0] Memory: 1K\n<6>[ 1.0] pid_max: default\n<6>[ 3.0] Run /init as init\n")
    assert list(kernel_log.marks(log).values()) == [2.0, 3.0]


def test_initcalls_longest_first_by_the_stamps(log):
    calls = kernel_log.initcalls(log)
    assert list(calls) == ["acpi_init", "virtio_console_init", "nested_init"]
    assert calls["acpi_init"] == pytest.approx(57.8), "the text counts in ticks and says 56"
    assert calls["nested_init"] == pytest.approx(1.5)


def test_an_empty_log_has_nothing():
    assert kernel_log.marks(()) == {}
    assert kernel_log.initcalls(()) == {}
