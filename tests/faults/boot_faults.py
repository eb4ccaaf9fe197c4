# SPDX-License-Identifier: MIT
"""Faults that keep a guest from becoming one."""

import struct
import threading
import time
from dataclasses import replace

from fault_table import DEADLINE, HANG_SECONDS, PANIC_SECONDS
from stage import Stage, fault

from harness.errors import FailureKind
from harness.images import GuestImage, cpio
from harness.images.guest import guest_nodes
from harness.link import Guest
from harness.options import make_guest

_LOOK_SECONDS = 0.002
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
    seconds = 6.0
    _boot(stage, _with_init(stage, b"\xeb\xfe"), seconds=seconds)  # jmp to itself
    stage.seconds -= seconds - DEADLINE


def _boot(
    stage: Stage, image: GuestImage, *cmdline: str, seconds: float = 30.0, says: str = "Kernel panic"
) -> None:
    """Boot what cannot become a guest; where it says what is wrong, the time counts from that."""
    guest = make_guest(replace(stage.shop.options, snapshot=False), image)
    guest.options = replace(guest.options, cmdline=cmdline, boot_timeout=seconds)
    with _Listener(guest, says) as listener:
        with stage.injection(), guest:
            pass
        end = time.monotonic()
    if listener.heard:
        stage.seconds = end - listener.heard


class _Listener:
    """Looks at the console, beside the harness, for the moment the guest says something."""

    def __init__(self, guest: Guest, says: str) -> None:
        self._guest = guest
        self._says = says
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self.heard = 0.0

    def __enter__(self) -> "_Listener":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self.heard and not self._over.wait(_LOOK_SECONDS):
            machine = getattr(self._guest, "machine", None)
            if machine is not None and self._says in machine.console.text():
                self.heard = time.monotonic()


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
