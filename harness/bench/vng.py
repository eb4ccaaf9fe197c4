# SPDX-License-Identifier: MIT
"""The boot peer: virtme-ng, given a kernel that is unpacked in the cache and installed nowhere.

What it wants, and where it gets it from here:

* ``boot/`` and ``lib/modules/<release>`` under one folder, with a ``modules.dep`` (virtme/commands/run.py:
  find_kernel_and_mods): hard links to the cached kernel, depmod run beside them, the cached kernel untouched;
* ``depmod`` and ``modprobe`` (virtme/modfinder.py): the host's, else Debian's kmod out of the cache;
* a static busybox for its initramfs (virtme/mkinitramfs.py): the host's, else the one of the images room;
* ``file`` or ``strings`` for the kernel's release (get_kernel_version).

In the guest it runs on the host's root file system.  Its script ports are found by udev's names only
(/dev/virtio-ports/...); on a host without udev the command's output goes to the console instead, which it
shows with --verbose alone.
"""

import contextlib
import hashlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, cast

from harness.errors import GuestFailure, HostLacks
from harness.images import Kernel, Progress, busybox
from harness.images.apt import Apt, unpack
from harness.images.run import clean_environment, run
from harness.images.store import Store

_DEADLINE = 120.0
_UDEV = (
    "/usr/lib/systemd/systemd-udevd",
    "/lib/systemd/systemd-udevd",
)  # virtme/guest/virtme-init: find_udevd


@dataclass(frozen=True)
class Vng:
    """virtme-ng, ready to run.

    Attributes:
        program: the ``vng`` of this Python environment.
        folder: kernel and modules as it wants them.
        environment: for the process.
        udev: whether the host has a udevd for its guest.
        release: what ``uname -r`` has to say.
        memory_mib: RAM of its guest in MiB.
        cpus: virtual CPUs of its guest.
    """

    program: Path
    folder: Path
    environment: Mapping[str, str]
    udev: bool
    release: str
    memory_mib: int
    cpus: int

    @property
    def about(self) -> str:
        """How it runs, for a note."""
        how = "output by its ports" if self.udev else "no udevd on this host: output by the console"
        return (
            f"virtme-ng {version('virtme-ng')}: whole command, TCG, 9p root, {self.cpus} CPU, "
            f"{self.memory_mib} MiB; `uname -r` in place of `true`: as quick, and it shows that it ran; {how}"
        )

    def run(self, image: str) -> float:
        """Boot ``boot/<image>`` once and have it say ``uname -r``; returns when the command has ended.

        Returns:
            Seconds from starting the command to the line with the release.

        Raises:
            GuestFailure: the release was not said, or not in time.
        """
        argv = [str(self.program), "--disable-kvm", "-r", str(self.folder / "boot" / image)]
        argv += ["--force-9p", "--cpus", str(self.cpus), "-m", f"{self.memory_mib}M"]
        argv += [] if self.udev else ["--verbose", "--append", "quiet", "--append", "loglevel=0"]
        started = time.perf_counter()
        process = subprocess.Popen(
            [*argv, "--", "uname", "-r"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(self.environment),
            cwd=self.folder,
            start_new_session=True,
        )
        said, text = self._listen(process, started)
        if said is None:
            raise GuestFailure(
                f"vng did not say {self.release}",
                tried=" ".join(argv),
                observed=f"ended with {process.returncode} after {time.perf_counter() - started:.1f} s",
                evidence=tuple(text.splitlines()[-20:]),
            )
        return said - started

    def _listen(self, process: "subprocess.Popen[bytes]", started: float) -> tuple[float | None, str]:
        """Collect what it prints until it ends; when the release was there, and everything."""
        said, text, release = None, b"", self.release.encode()
        with cast("IO[bytes]", process.stdout) as pipe, selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            try:
                while (left := started + _DEADLINE - time.perf_counter()) > 0 and selector.select(left):
                    data = os.read(pipe.fileno(), 1 << 16)
                    if not data:
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            process.wait(left)
                        break
                    text += data
                    # A line of its own: the kernel's first line names the release too.
                    if said is None and release in map(bytes.strip, text.splitlines()):
                        said = time.perf_counter()
            finally:
                _end_session(process)
        return said, text.decode(errors="replace")


def prepare(kernel: Kernel, progress: Progress, memory_mib: int, cpus: int) -> Vng:
    """Put together what virtme-ng wants for one kernel; cached.

    Args:
        kernel: what it boots.
        progress: hears of long steps.
        memory_mib: RAM of its guest in MiB.
        cpus: virtual CPUs of its guest.

    Raises:
        HostLacks: virtme-ng, its helpers or the network are missing.
    """
    program = Path(sys.executable).with_name("vng")
    if not program.is_file():
        raise HostLacks(
            "virtme-ng is not installed", hint="pip install 'virtme-ng>=1.30' beside this project"
        )
    store = Store.default()
    environment = _with_tools(clean_environment(), store, progress)
    paths = {"kernel": kernel.vmlinuz, "boot": kernel.boot_image, "modules": kernel.modules}
    key = hashlib.sha256(repr(sorted(paths.items())).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        (folder / "boot").mkdir()
        for image in {kernel.vmlinuz, kernel.boot_image}:
            os.link(image, folder / "boot" / image.name)
        modules = folder / "lib/modules" / kernel.release
        shutil.copytree(kernel.modules, modules, copy_function=os.link)
        depmod = shutil.which("depmod", path=environment["PATH"]) or "depmod"
        run([depmod, "-b", str(folder), kernel.release], doing="depmod", timeout=60, env=environment)

    folder = store.entry("bench", f"vng-{key}", progress, build)
    udev = any(os.access(path, os.X_OK) for path in _UDEV) or shutil.which("udevd") is not None
    return Vng(program, folder, environment, udev, kernel.release, memory_mib, cpus)


def _with_tools(environment: Mapping[str, str], store: Store, progress: Progress) -> dict[str, str]:
    """Add to PATH what the host lacks of kmod and busybox."""
    path = f"{Path(sys.executable).parent}:{environment.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    changed = {"PATH": path}
    if shutil.which("busybox", path=path) is None:
        folder, _ = busybox(progress)
        path = changed["PATH"] = f"{path}:{folder / 'bin'}:{folder / 'usr/bin'}"
    if shutil.which("depmod", path=path) is None or shutil.which("modprobe", path=path) is None:
        folder = _kmod(store, progress)
        changed["PATH"] = f"{path}:{folder / 'tools'}"
        # Holds libkmod and nothing else: no other program meets a strange library.
        changed["LD_LIBRARY_PATH"] = str(folder / "libraries")
    return {**environment, **changed}


def _kmod(store: Store, progress: Progress) -> Path:
    """Debian's kmod in the cache; the rest of what it is linked with, apt needs as well."""
    pointer = store.pointer("bench-kmod")
    if pointer and (known := store.path("bench", str(pointer["key"]))).is_dir():
        return known
    apt = Apt(store, progress)
    apt.update()
    entries = apt.closure(["kmod"], "libkmod2")

    def build(folder: Path) -> None:
        for deb in apt.download(entries, folder).values():
            unpack(deb, folder)
            deb.unlink()
        (program,) = [path for path in (folder / "usr/bin/kmod", folder / "bin/kmod") if path.is_file()]
        for part in ("tools", "libraries"):
            (folder / part).mkdir()
        for name in ("depmod", "modprobe"):
            (folder / "tools" / name).symlink_to(os.path.relpath(program, folder / "tools"))
        for library in folder.glob("**/libkmod.so.2"):
            (folder / "libraries" / library.name).symlink_to(os.path.relpath(library, folder / "libraries"))

    key = f"kmod-{entries[0].record.sha256[:12]}"
    folder = store.entry("bench", key, progress, build)
    store.set_pointer("bench-kmod", {"key": key})
    return folder


def _end_session(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the command, its QEMU included."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
