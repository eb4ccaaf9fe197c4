# SPDX-License-Identifier: MIT
"""Which accelerator a machine gets, and why.

That ``/dev/kvm`` exists, opens and creates a machine proves nothing: there are hosts on which all three
succeed and every guest hangs at its first instructions. Only a guest that answered is a proof, so one is
started, once per host boot, QEMU and kernel, and the verdict is remembered.
"""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final

from harness.errors import HarnessError, HostLacks
from harness.images import cache_root
from harness.images.store import read_json, write_json
from harness.vm.console import READY_LINE
from harness.vm.errors import GuestPanicked, MachineFailure, describe_status
from harness.vm.launch import Launched, launched
from harness.vm.qemu import Qemu, find_qemu
from harness.vm.spec import CMDLINE_MAX, Accel, MachineSpec
from harness.vm.workdir import Workdir

KVM_DEVICE: Final = Path("/dev/kvm")
#: A guest under a working KVM prints its first line within half a second.
LIFE_SECONDS: Final = 4.0
#: ... and its agent answers within two; a busy host may need more.
READY_SECONDS: Final = 20.0
_REAP_SECONDS: Final = 2.0
#: Changes when a verdict of an older version of this file must not be believed any more.
_CACHE_FORMAT: Final = "2"


@dataclass(frozen=True)
class AcceleratorVerdict:
    """What executes the guest.

    Attributes:
        name: ``"kvm"`` or ``"tcg"``.
        reason: why, for people.
    """

    name: str
    reason: str


class Outcome(Enum):
    """How the trial of KVM ended."""

    #: The agent answered.
    WORKS = "works"
    #: Not one byte on the console, or QEMU could not use KVM: the host's fault, and it will stay so.
    DEAD = "dead"
    #: The guest ran and did not get as far as the agent: that may be the guest's fault as well.
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Trial:
    """The result of starting a guest under KVM.

    Attributes:
        outcome: how it ended.
        reason: what was seen.
    """

    outcome: Outcome
    reason: str


Probe = Callable[[Qemu, MachineSpec], Trial]


def choose_accelerator(
    spec: MachineSpec,
    *,
    qemu: Qemu | None = None,
    cache: Path | None = None,
    device: Path = KVM_DEVICE,
    probe: Probe | None = None,
) -> AcceleratorVerdict:
    """Decides how a machine is executed.

    KVM is taken only when a guest with this kernel answered under it. A forced accelerator is taken as it is,
    except that KVM must be able to work.

    Args:
        spec: the machine; its kernel and initramfs are what is tried.
        qemu: which QEMU; looked up if None.
        cache: folder for verdicts; the project's cache if None.
        device: KVM's device node.
        probe: starts the trial guest.

    Raises:
        HostLacks: KVM is forced and cannot work, or QEMU is missing.
    """
    if spec.accel is Accel.TCG:
        return AcceleratorVerdict("tcg", "asked for")
    closed = _why_closed(device)
    if closed:
        trial = Trial(Outcome.DEAD, closed)
    else:
        trial = _remembered(
            qemu or find_qemu(),
            spec,
            cache if cache is not None else cache_root() / "accel",
            device,
            probe or try_kvm,
        )
    if spec.accel is Accel.KVM:
        if trial.outcome is Outcome.DEAD:
            raise HostLacks(
                "KVM was asked for and does not work on this host",
                tried=f"starting a guest through {device}",
                observed=trial.reason,
                hint="leave the accelerator to 'auto', or say 'tcg'",
            )
        return AcceleratorVerdict("kvm", f"asked for; {trial.reason}")
    return AcceleratorVerdict("kvm" if trial.outcome is Outcome.WORKS else "tcg", trial.reason)


def try_kvm(qemu: Qemu, spec: MachineSpec) -> Trial:
    """Starts the machine's kernel under KVM and watches for life.

    Args:
        qemu: which QEMU.
        spec: the machine.
    """
    folder = Workdir()
    try:
        with launched(qemu, _talkative(spec), "kvm", folder.path) as it:
            if not it.console.wait_output(LIFE_SECONDS):
                return Trial(Outcome.DEAD, f"{KVM_DEVICE} opens, but {_why_silent(it)}")
            start = time.monotonic()
            it.console.wait_for(READY_LINE, READY_SECONDS)
            return Trial(Outcome.WORKS, f"a guest answered under KVM within {time.monotonic() - start:.1f} s")
    except GuestPanicked as err:
        return Trial(Outcome.UNCLEAR, f"a guest under KVM panicked: {err.panic}")
    except MachineFailure as err:
        return Trial(Outcome.UNCLEAR, f"a guest under KVM started, but: {err.summary}")
    finally:
        folder.close(keep=False)


def _talkative(spec: MachineSpec) -> MachineSpec:
    # A quiet kernel and a dead one look alike until the agent answers; the last loglevel= on the line counts.
    words = (*spec.cmdline, "loglevel=7")
    return replace(spec, cmdline=words) if len(" ".join(words).encode()) <= CMDLINE_MAX else spec


def _why_silent(it: Launched) -> str:
    if not it.console.ended:
        return f"a guest under it stayed silent for {LIFE_SECONDS:g} s"
    status = it.process.wait(_REAP_SECONDS)  # the console closes a moment before the process is gone
    end = "closed its console" if status is None else describe_status(status)
    words = it.scene().qemu
    return f"QEMU could not use it ({end})" + (f": {words[0]}" if words else "")


def _why_closed(device: Path) -> str:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"no {device}"
    except PermissionError:
        return f"{device} exists, but this user may not open it (group kvm?)"
    except OSError as err:
        return f"{device} does not open: {err.strerror}"
    return ""


def _remembered(qemu: Qemu, spec: MachineSpec, cache: Path, device: Path, probe: Probe) -> Trial:
    file = cache / f"kvm-{_identity(qemu, spec, device)}.json"
    known = _load(file)
    if known is not None:
        return known
    trial = probe(qemu, spec)
    if trial.outcome is not Outcome.UNCLEAR:  # another initramfs may do better: ask again
        _store(file, trial)
    return trial


def _identity(qemu: Qemu, spec: MachineSpec, device: Path) -> str:
    kernel, node = spec.kernel.stat(), device.stat()
    facts = (
        _CACHE_FORMAT,
        _boot_id(),
        f"{qemu.path} {qemu.version}",
        f"{spec.kernel.resolve()} {kernel.st_size} {kernel.st_mtime_ns}",
        f"{spec.machine} {spec.cpu}",
        f"{device} {node.st_rdev} {node.st_ino} {node.st_ctime_ns}",
    )
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _load(file: Path) -> Trial | None:
    kept = read_json(file)
    try:
        return None if kept is None else Trial(Outcome(kept["outcome"]), str(kept["reason"]))
    except (ValueError, KeyError):
        return None  # damaged: a new trial repairs it


def _store(file: Path, trial: Trial) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"outcome": trial.outcome.value, "reason": trial.reason})
    except (OSError, HarnessError):
        return  # a cache that cannot be written costs the next machine a few seconds, no more
