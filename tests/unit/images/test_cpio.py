# SPDX-License-Identifier: MIT
import shutil
import stat
import subprocess

import pytest

from harness.images import cpio

NODES = [
    cpio.regular("init", b"\x7fELF...", 0o755),
    cpio.character_device("dev/console", 5, 1),
    cpio.regular("etc/iobmd/modules", b"/lib/a.ko\n"),
    cpio.symlink("bin/sh", "/bin/busybox"),
    cpio.directory("proc"),
]


def test_what_was_written_is_read_back() -> None:
    found = {node.path: node for node in cpio.read_archive(cpio.write_archive(NODES))}
    for node in NODES:
        assert found[node.path] == node
    assert found["dev/console"].device == (5, 1)
    assert stat.S_ISCHR(found["dev/console"].mode)


def test_parents_are_made_and_come_first() -> None:
    order = [node.path for node in cpio.read_archive(cpio.write_archive(NODES))]
    for path in order:
        parent = path.rpartition("/")[0]
        assert not parent or order.index(parent) < order.index(path)
    assert {"dev", "etc", "etc/iobmd", "bin"} <= set(order)


def test_order_of_the_input_does_not_matter() -> None:
    assert cpio.write_archive(NODES) == cpio.write_archive(NODES[::-1])


def test_no_time_and_no_owner_gets_in() -> None:
    archive = cpio.write_archive(NODES)
    fields = [archive[6 + 8 * i : 14 + 8 * i] for i in range(13)]
    assert [int(fields[i], 16) for i in (2, 3, 5)] == [0, 0, 0]


@pytest.mark.parametrize("size", range(9))
def test_every_padding(size: int) -> None:
    data = bytes(range(size))
    archive = cpio.write_archive([cpio.regular("a" * (size + 1), data), cpio.regular("z", b"end")])
    assert [node.data for node in cpio.read_archive(archive)] == [data, b"end"]
    assert len(archive) % 4 == 0


def test_a_cut_archive_is_noticed() -> None:
    archive = cpio.write_archive(NODES)
    with pytest.raises(ValueError, match=r"no newc header|cut off"):
        list(cpio.read_archive(archive[:-150]))


def test_another_reader_agrees() -> None:
    if shutil.which("cpio") is None:
        pytest.skip("GNU cpio is not installed")
    listed = subprocess.run(
        ["cpio", "-it", "--quiet"], input=cpio.write_archive(NODES), capture_output=True, check=True
    )
    assert listed.stderr == b""  # it warns of bytes it has to skip
    assert sorted(listed.stdout.decode().split()) == sorted(
        ["init", "dev", "dev/console", "etc", "etc/iobmd", "etc/iobmd/modules", "bin", "bin/sh", "proc"]
    )
