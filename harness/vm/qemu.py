# SPDX-License-Identifier: MIT
"""QEMU's command line: which program, which version, which options and why."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from harness.errors import HostLacks, exhaustion
from harness.vm.attached import disk_device, disk_words, network_words
from harness.vm.spec import MachineSpec

PROGRAM: Final = "qemu-system-x86_64"
#: The first release whose x-ignore-shared, memory-backend and fd= chardev behaviour this package was run
#: against.
VERSION_MIN: Final = (7, 2)
_VERSION_SECONDS: Final = 20.0
#: Names of the image that holds saved states, in QEMU's block layer, and of its descriptor set.
STATE_NODE: Final = "state"
STATE_FILE: Final = "state-file"
STATE_SET: Final = 1
#: The descriptor set of the first disk; the others follow.
_DISK_SETS: Final = 2


@dataclass(frozen=True)
class Qemu:
    """An installed QEMU.

    Attributes:
        path: the program.
        version: for example ``"7.2.22"``.
        build: what it says of itself, a distribution's revision included.
    """

    path: Path
    version: str
    build: str = ""


@dataclass(frozen=True)
class Wires:
    """Descriptors QEMU inherits; nothing it uses has a name in the file system or on the network.

    Attributes:
        ram: the RAM file.
        console: the serial console's socket.
        qmp: the machine protocol's socket.
        ports: port name to its socket, in the order of ``MachineSpec.ports``.
        state: the file with a saved state, for a machine that starts from one.
        kernel: the stand-in for the kernel such a machine has in its RAM already; see `harness.vm.stub`.
        disks: the files of its disks, in the order of ``MachineSpec.disks``.
        networks: the sockets behind its networks, in the order of ``MachineSpec.networks``.
    """

    ram: int
    console: int
    qmp: int
    ports: Mapping[str, int] = field(default_factory=dict)
    state: int | None = None
    kernel: int | None = None
    disks: tuple[int, ...] = ()
    networks: tuple[int, ...] = ()

    def all(self) -> tuple[int, ...]:
        """Every descriptor, for ``pass_fds``."""
        further = (fd for fd in (self.state, self.kernel) if fd is not None)
        return (self.ram, self.console, self.qmp, *self.ports.values(), *self.disks, *self.networks, *further)


def find_qemu() -> Qemu:
    """The QEMU to use, looked up in ``PATH``.

    Raises:
        HostLacks: there is none, it does not run, or it is older than 7.2.
    """
    found = shutil.which(PROGRAM)
    if found is None:
        raise HostLacks(
            f"{PROGRAM} is not installed",
            tried="looking for it in PATH",
            hint="apt-get install qemu-system-x86, or run images/bootstrap",
        )
    path = Path(found)
    return _identify(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _identify(path: Path, _mtime: int) -> Qemu:
    tried = f"{path} --version"
    try:
        done = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        lack = exhaustion(err, tried, forking=True)
        raise (
            lack or HostLacks(f"{path} does not run", tried=tried, observed=str(err), hint="reinstall it")
        ) from err
    match = re.search(r"version (\d+)\.(\d+)(\.\d+)?", done.stdout)
    if done.returncode or match is None:
        raise HostLacks(
            f"{path} does not tell its version",
            tried=tried,
            observed=f"exit code {done.returncode}",
            evidence=(done.stdout + done.stderr).splitlines()[:10],
            hint="reinstall QEMU",
        )
    version = f"{match[1]}.{match[2]}{match[3] or ''}"
    if (int(match[1]), int(match[2])) < VERSION_MIN:
        least = ".".join(map(str, VERSION_MIN))
        raise HostLacks(
            f"QEMU {version} is too old",
            tried=tried,
            observed=f"{least} is the least",
            hint=f"install {least} or later",
        )
    return Qemu(path, version, done.stdout.splitlines()[0].strip())


def compose(qemu: Qemu, spec: MachineSpec, accelerator: str, wires: Wires) -> tuple[str, ...]:
    """The command line of a machine that talks through inherited descriptors.

    Args:
        qemu: which program.
        spec: which machine.
        accelerator: ``"kvm"`` or ``"tcg"``.
        wires: the descriptors.
    """
    size = f"{spec.memory_mib}M"
    if wires.kernel is not None:
        stub = Path(f"/proc/self/fd/{wires.kernel}")
        spec = replace(spec, kernel=stub, initrd=stub)  # QEMU wants a byte of initramfs at least
    # fmt: off
    argv = [
        *_base(qemu, spec, accelerator),
        # A file backend that is shared is what lets the host map the same pages, and what lets a migration
        # with x-ignore-shared leave them out.  The path leads back to the inherited memfd.
        "-object", f"memory-backend-file,id=ram,size={size},mem-path=/proc/self/fd/{wires.ram},share=on",
        "-chardev", f"socket,id=console,fd={wires.console}",
        "-serial", "chardev:console",
        "-chardev", f"socket,id=qmp,fd={wires.qmp}",
        "-mon", "chardev=qmp,mode=control",
    ]
    # fmt: on
    backends = {
        name: f"socket,id=port{index},fd={fd}" for index, (name, fd) in enumerate(wires.ports.items())
    }
    words = [*_disks(spec, wires.disks), *_networks(spec, wires.networks)]
    return (*argv, *_ports(backends), *_devices(spec), *words, *_slots(spec), *_saved(wires))


def compose_by_hand(qemu: Qemu, spec: MachineSpec, accelerator: str) -> tuple[str, ...]:
    """The same machine with nothing inherited: what a person can paste into a shell.

    The console is the terminal (Ctrl-A X ends QEMU, Ctrl-A C is its monitor); ports and networks lead
    nowhere, and disks forget what is written.
    """
    # fmt: off
    argv = [
        *_base(qemu, spec, accelerator),
        "-object", f"memory-backend-memfd,id=ram,size={spec.memory_mib}M,share=on",
        "-serial", "mon:stdio",
    ]
    # fmt: on
    backends = {name: f"null,id=port{index}" for index, name in enumerate(spec.ports)}
    words = []
    for index, disk in enumerate(spec.disks):
        words += disk_words(index, disk, f"driver=null-co,read-zeroes=on,size={disk.size_mib}M")
        if disk.model.comes_late:
            words += ["-device", disk_device(index, disk)]  # nobody captures a machine by hand
    for index, network in enumerate(spec.networks):
        words += network_words(index, network, "null")
    return (*argv, *_ports(backends), *_devices(spec), *words, *_slots(spec))


def _base(qemu: Qemu, spec: MachineSpec, accelerator: str) -> list[str]:
    machine = [spec.machine, "memory-backend=ram"]
    if spec.machine == "q35":
        machine.append(
            "sata=off"
        )  # an AHCI controller with six ports to probe costs boot time; a disk that wants one brings its own
    # fmt: off
    return [
        str(qemu.path),
        "-nodefaults",  # no VGA, network card, floppy or CD-ROM: only what is named here exists
        "-no-user-config",  # what the host's /etc/qemu says must not change a test
        "-display", "none",
        "-nic", "none",  # says again, to readers, that only a network that was asked for is there
        "-machine", ",".join(machine),
        # Multi-threaded translation: with one host thread for all vCPUs a spinning guest starves the others.
        "-accel", "tcg,thread=multi" if accelerator == "tcg" else accelerator,
        "-cpu", cpu_argument(spec, accelerator),
        "-smp", str(spec.cpus),
        "-m", f"{spec.memory_mib}M",
        "-no-reboot",  # with panic=-1 a panic, and without it a triple fault, ends QEMU instead of looping
        "-kernel", str(spec.kernel),
        "-initrd", str(spec.initrd),
        "-append", " ".join(spec.cmdline),
    ]
    # fmt: on


def cpu_argument(spec: MachineSpec, accelerator: str) -> str:
    """The ``-cpu`` value: the spec's, which for ``max`` under TCG does without two features.

    ERMS and FSRM promise that ``rep movsb`` and ``rep stosb`` are quick, and Linux then clears and copies
    memory with them.  TCG carries them out a byte at a time; without the promise Linux takes the eight-byte
    forms (arch/x86/lib/clear_page_64.S, copy_user_64.S), which are several times as fast there.  Whoever
    names one of the two, or another model, gets what was asked for.
    """
    words = spec.cpu.split(",")
    named = {word.strip("+-").split("=")[0] for word in words[1:]}
    if accelerator != "tcg" or words[0] != "max" or named & {"erms", "fsrm"}:
        return spec.cpu
    return f"{spec.cpu},-erms,-fsrm"


def _ports(backends: Mapping[str, str]) -> list[str]:
    if not backends:
        return []
    argv = ["-device", "virtio-serial-pci,id=serial"]
    for index, (name, backend) in enumerate(backends.items()):
        argv += ["-chardev", backend]
        # nr starts at 1: port 0 is reserved for a console
        # (hw/char/virtio-serial-bus.c:virtser_port_device_realize)
        argv += ["-device", f"virtserialport,bus=serial.0,nr={index + 1},chardev=port{index},name={name}"]
    return argv


def _disks(spec: MachineSpec, fds: tuple[int, ...]) -> list[str]:
    words = []
    for index, (disk, fd) in enumerate(zip(spec.disks, fds, strict=True)):
        words += ["-add-fd", f"fd={fd},set={_DISK_SETS + index}"]
        # locking=off: a memfd has no second opener to be kept out.
        file = f"driver=file,filename=/dev/fdset/{_DISK_SETS + index},locking=off,discard=unmap"
        words += disk_words(index, disk, file)
    return words


def _networks(spec: MachineSpec, fds: tuple[int, ...]) -> list[str]:
    words = []
    for index, (network, fd) in enumerate(zip(spec.networks, fds, strict=True)):
        words += network_words(index, network, f"socket,fd={fd}")
    return words


def _saved(wires: Wires) -> list[str]:
    if wires.state is None:
        return []
    # fmt: off
    return [
        "-S",  # nothing may execute before RAM and state are back
        "-add-fd", f"fd={wires.state},set={STATE_SET}",
        # No device is behind this image.  locking=off: a memfd has no second opener to be kept out.
        "-blockdev", f"driver=file,node-name={STATE_FILE},filename=/dev/fdset/{STATE_SET},locking=off",
        "-blockdev", f"driver=qcow2,node-name={STATE_NODE},file={STATE_FILE}",
    ]
    # fmt: on


def _devices(spec: MachineSpec) -> list[str]:
    return [word for device in spec.devices for word in ("-device", device)]


def _slots(spec: MachineSpec) -> list[str]:
    if spec.machine != "q35":
        return []  # the older chipset's bus takes devices as it is
    # Nothing can be plugged into PCI Express's root bus itself, only behind a port of it.
    ports = (f"pcie-root-port,id={name},chassis={index + 1}" for index, name in enumerate(spec.places))
    return [word for port in ports for word in ("-device", port)]
