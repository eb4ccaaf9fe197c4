# SPDX-License-Identifier: MIT
"""Initial RAM disks: a writer of the kernel's "newc" cpio format that gives the same bytes every time.

Format: Documentation/driver-api/early-userspace/buffer-format.rst.  Not packed: under TCG the guest would
unpack it slower than QEMU copies it.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_HEADER = 110


@dataclass(frozen=True)
class Node:
    """One file of an archive; owner and group are root, its time is 0.

    Attributes:
        path: without a leading slash.
        mode: type and permissions, as in st_mode.
        data: contents, or a symbolic link's target.
        device: major and minor number of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str) -> Node:
    """Return a directory."""
    return Node(path, stat.S_IFDIR | 0o755)


def regular(path: str, data: bytes, mode: int = 0o644) -> Node:
    """Return a regular file."""
    return Node(path, stat.S_IFREG | mode, data)


def symlink(path: str, target: str) -> Node:
    """Return a symbolic link."""
    return Node(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Node:
    """Return a character device node."""
    return Node(path, stat.S_IFCHR | mode, device=(major, minor))


def write_archive(nodes: list[Node]) -> bytes:
    """Return the archive of ``nodes`` and of the directories above them, sorted by path.

    A parent sorts before its children, which the kernel's unpacker (init/initramfs.c) needs.
    """
    by_path = {parent: directory(parent) for node in nodes for parent in _parents(node.path)}
    by_path |= {node.path: node for node in nodes}
    parts = [_entry(number, by_path[path]) for number, path in enumerate(sorted(by_path), start=1)]
    parts.append(_entry(0, Node(_TRAILER, 0)))
    return b"".join(parts)


def read_archive(archive: bytes) -> Iterator[Node]:
    """Yield what an archive holds, in its order.

    Raises:
        ValueError: this is no newc archive, or it is cut off.
    """
    position = 0
    while True:
        header = archive[position : position + _HEADER]
        if len(header) < _HEADER or header[:6] != _MAGIC:
            raise ValueError(f"no newc header at {position}")
        fields = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        mode, size, major, minor, name_size = fields[1], fields[6], fields[9], fields[10], fields[11]
        start = position + _HEADER
        name = archive[start : start + name_size - 1].decode()
        data_at = start + name_size + _padding(_HEADER + name_size)
        data = archive[data_at : data_at + size]
        if len(data) != size:
            raise ValueError(f"{name} is cut off")
        if name == _TRAILER:
            return
        yield Node(name, mode, data, (major, minor))
        position = data_at + size + _padding(size)


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))


def _entry(inode: int, node: Node) -> bytes:
    name = node.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, node.mode, 0, 0, links, 0, len(node.data), 0, 0, *node.device, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(_padding(len(head))) + node.data + bytes(_padding(len(node.data)))


def _padding(length: int) -> int:
    return -length % 4
