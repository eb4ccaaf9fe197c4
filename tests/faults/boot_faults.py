# SPDX-License-Identifier: MIT
"""Faults that keep a guest from becoming one."""

import struct
from dataclasses import replace

from fault_table import DEADLINE, HANG_SECONDS, PANIC_SECONDS, waiting_aside
from stage import Listener, Stage, fault

from harness.errors import FailureKind
from harness.images import GuestImage, cpio
from harness.images.guest import guest_nodes
from harness.options import make_guest

_PANICKED = FailureKind.KERNEL_PANICKED


@fault("boot", "panic: an initramfs of random bytes", _PANICKED, PANIC_SECONDS)
def broken_initramfs(stage: Stage) -> None:
    path = stage.folder / "initramfs"
    path.write_bytes(b"\x07\x5a" * 4096)
    _boot(stage, replace(stage.shop.image, initramfs=path))


@fault("boot", "panic: a root file system that does not exist", _PANICKED, PANIC_SECONDS)
def bad_root(stage: Stage) -> None:
    _boot(stage, stage.shop.image, "rdinit=/nowhere", "root=/dev/nowhere")


@fault("boot", "panic: an init that ends at once", _PANICKED, PANIC_SECONDS)
def init_that_ends(stage: Stage) -> None:
    _boot(stage, _with_init(stage, b"\x0f\x0b"))  # ud2


@fault("boot", "a module that the agent has to load is missing", FailureKind.QEMU_DIED, PANIC_SECONDS)
def module_missing(stage: Stage) -> None:
    """The agent says so on the console and powers off; the time counts from what it says."""
    image = stage.shop.image
    nodes = guest_nodes(image.kernel, image.module.ko.read_bytes(), image.agent.binary.read_bytes())
    nodes = [node for node in nodes if not node.path.endswith("iobmd.ko")]
    _boot(stage, _with(stage, nodes), says="iobmd-agent: ")


@fault("boot", "an init that loops", FailureKind.AGENT_DEAD, HANG_SECONDS)
def init_that_loops(stage: Stage) -> None:
    """The deadline is the boot's, and longer than the boot; the time counts from one second before it."""
    with make_guest(replace(stage.shop.options, snapshot=False), stage.shop.image) as guest:
        seconds = 2.0 + 3 * guest.boot_seconds  # as it goes on this host now
    _boot(stage, _with_init(stage, b"\xeb\xfe"), seconds=seconds)  # jmp to itself
    stage.seconds -= seconds - DEADLINE


def _boot(
    stage: Stage, image: GuestImage, *cmdline: str, seconds: float = 120.0, says: str = "Kernel panic"
) -> None:
    """Boot what cannot become a guest; where it says what is wrong, the time counts from that."""
    guest = make_guest(replace(stage.shop.options, snapshot=False), image)
    guest.options = replace(guest.options, cmdline=cmdline, boot_timeout=seconds)
    with Listener(guest, says) as listener:
        with stage.injection(), guest:
            pass
        end = waiting_aside()
    if listener.heard:
        stage.seconds = max(0.0, end - listener.heard)


def _with_init(stage: Stage, code: bytes) -> GuestImage:
    nodes = [cpio.character_device("dev/console", 5, 1), cpio.regular("init", _program(code), 0o755)]
    return _with(stage, nodes)


def _with(stage: Stage, nodes: list[cpio.Node]) -> GuestImage:
    path = stage.folder / "initramfs"
    path.write_bytes(cpio.write_archive(nodes))
    return replace(stage.shop.image, initramfs=path)


def _program(code: bytes) -> bytes:
    """Return an ELF that executes *code* from its first instruction on."""
    base, header, segment = 0x400000, 64, 56
    entry, size = base + header + segment, header + segment + len(code)
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    elf = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, entry, header, 0, 0, header, segment, 1, 0, 0, 0)
    return elf + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code
