# SPDX-License-Identifier: MIT
"""What a guest needs to be an SSH server: dropbear, OpenSSH's SFTP server, their libraries, a shell.

They come out of Debian packages, unpacked in the cache.  Which libraries go along is read out of the programs
(DT_NEEDED) and not typed here, and each file lies in the guest where its package puts it, so that the loader
finds it by itself.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from harness.errors import BadInput
from harness.images.apt import PackageRecord, records_from_json
from harness.images.packages import applets, busybox, busybox_binary, unpacked
from harness.images.progress import Progress

_SET = "ssh-server"
_PACKAGES = ("dropbear-bin", "openssh-sftp-server")
# Shared libraries, but nothing they are only said to go well with.
_FOLLOW = r"lib|zlib1g$"
DROPBEAR = "/usr/sbin/dropbear"
SFTP_SERVER = "/usr/lib/sftp-server"
"""Where Debian's dropbear looks for it (SFTPSERVER_PATH in its options.h)."""
SHELL = "/bin/busybox"


@dataclass(frozen=True)
class PayloadFile:
    """One file to bring into the guest.

    Attributes:
        path: in the guest, absolute.
        source: on this host.
        mode: permissions.
    """

    path: str
    source: Path
    mode: int


@dataclass(frozen=True)
class SshPayload:
    """What makes a guest an SSH server.

    Attributes:
        files: programs, the loader and shared libraries.
        shell: busybox, for guests that have none.
        links: names in ``/bin`` under which busybox is a command.
        packages: where all of it comes from.
    """

    files: tuple[PayloadFile, ...]
    shell: PayloadFile
    links: tuple[str, ...]
    packages: tuple[PackageRecord, ...]


def ssh_payload(progress: Progress) -> SshPayload:
    """Return what an SSH server is made of; about 2 MB are downloaded the first time, offline afterwards.

    Raises:
        HostLacks: no network the first time, no apt, or no space.
        BadInput: the host's sources lack a package, or the packages a library that a program needs.
    """
    shell, shell_package = busybox(progress)
    folder, manifest = unpacked(_SET, _PACKAGES, _FOLLOW, progress, _resolve)
    files = tuple(
        PayloadFile(row["path"], folder / row["source"], row["mode"]) for row in manifest["payload"]
    )
    return SshPayload(
        files=files,
        shell=PayloadFile(SHELL, busybox_binary(shell), 0o755),
        links=applets(shell),
        packages=(*records_from_json(manifest["packages"]), shell_package),
    )


def _resolve(folder: Path) -> dict[str, Any]:
    """List the two programs and everything they load, for the manifest."""
    rows = [
        {"path": path, "source": str(source.relative_to(folder)), "mode": mode}
        for path, source, mode in resolve(folder, (DROPBEAR, SFTP_SERVER))
    ]
    return {"payload": rows}


def resolve(folder: Path, programs: tuple[str, ...]) -> list[tuple[str, Path, int]]:
    """Find programs and the shared libraries they need in a tree of unpacked packages.

    Args:
        folder: the tree; what is ``/`` for the packages.
        programs: absolute paths in it; symbolic links are followed inside of the tree.

    Returns:
        Path in the guest, file below *folder*, and permissions, of each; the loader lies where the programs
        ask for it.

    Raises:
        BadInput: a program or library is not there, or is no ELF file.
    """
    found = {path: _follow(folder, path) for path in programs}
    libraries = {path.name: path for path in sorted(folder.rglob("*.so*"))}
    queue = list(found.values())
    while queue:
        source = queue.pop()
        interpreter, needed = _wants(source)
        wanted = {f"/{libraries[name].relative_to(folder)}" for name in needed if name in libraries}
        lacking = [name for name in needed if name not in libraries]
        if interpreter:
            lacking += [] if PurePosixPath(interpreter).name in libraries else [interpreter]
            wanted.add(interpreter)
        if lacking:
            raise BadInput(
                f"the packages lack what {source.name} needs",
                observed=", ".join(lacking),
                hint="this host's package sources do not fit together; Debian 12's do",
            )
        for path in wanted - found.keys():
            found[path] = _follow(folder, f"/{libraries[PurePosixPath(path).name].relative_to(folder)}")
            queue.append(found[path])
    return [(path, source, 0o755) for path, source in sorted(found.items())]


def _follow(folder: Path, path: str) -> Path:
    """The regular file behind a path of the tree; an absolute link stays inside of it."""
    at = folder / path.lstrip("/")
    for _ in range(8):
        if not at.is_symlink():
            break
        target = at.readlink()
        at = folder / str(target).lstrip("/") if target.is_absolute() else at.parent / target
    at = at.resolve()
    if not at.is_file() or not at.is_relative_to(folder.resolve()):
        raise BadInput(f"the packages have no {path}", tried=f"looked below {folder}")
    return folder / at.relative_to(folder.resolve())


def _wants(path: Path) -> tuple[str, tuple[str, ...]]:
    """The loader and the libraries that an ELF file asks for."""
    try:
        elf = ELFFile(io.BytesIO(path.read_bytes()))
        interpreters = [s.get_interp_name() for s in elf.iter_segments() if isinstance(s, InterpSegment)]
        return "".join(interpreters[:1]), tuple(_needed(elf))
    except ELFError as error:
        raise BadInput(f"{path} is no program for the guest", observed=str(error)) from error


def _needed(elf: Any) -> Iterator[str]:
    for section in elf.iter_sections():
        if isinstance(section, DynamicSection):
            for tag in section.iter_tags():
                if tag.entry.d_tag == "DT_NEEDED":
                    yield str(vars(tag)["needed"])
