# SPDX-License-Identifier: MIT
"""What goes into a guest to make it an SSH server: found by what the programs ask for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.errors import BadInput, HostLacks
from harness.images import SilentProgress, packages, ssh
from harness.images.apt import IndexEntry, PackageRecord
from harness.images.packages import unpacked
from harness.images.ssh import resolve, ssh_payload

LIB = "usr/lib/x86_64-linux-gnu"
LOADER = "ld-linux-x86-64.so.2"


def compiled(target: Path, *flags: str, text: str = "int f(void) { return 0; }") -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    argv = ["gcc", "-x", "c", "-", "-x", "none", "-o", str(target), "-nostdlib"]
    subprocess.run([*argv, "-Wl,--no-as-needed", *flags], input=text, text=True, check=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two programs, a library that needs another, one nobody needs, and links as Debian makes them."""
    root = tmp_path / "root"
    libraries = root / LIB
    compiled(libraries / "libdeep.so.3.1", "-shared", "-Wl,-soname,libdeep.so.3")
    (libraries / "libdeep.so.3").symlink_to("libdeep.so.3.1")
    compiled(
        libraries / "libnear.so.1.0", "-shared", "-Wl,-soname,libnear.so.1", str(libraries / "libdeep.so.3.1")
    )
    (libraries / "libnear.so.1").symlink_to("libnear.so.1.0")
    compiled(libraries / "libidle.so.9", "-shared", "-Wl,-soname,libidle.so.9")
    compiled(root / "lib/x86_64-linux-gnu" / LOADER, "-shared", f"-Wl,-soname,{LOADER}")
    (root / "lib64").mkdir()
    (root / "lib64" / LOADER).symlink_to(f"/lib/x86_64-linux-gnu/{LOADER}")
    start = "void _start(void) {}"
    interpreter = f"-Wl,--dynamic-linker=/lib64/{LOADER}"
    near, linked = str(libraries / "libnear.so.1.0"), f"-Wl,-rpath-link={libraries}"
    compiled(root / "usr/sbin/dropbear", interpreter, linked, near, text=start)
    compiled(root / "usr/lib/openssh/sftp-server", interpreter, "-pie", text=start)
    (root / "usr/lib/sftp-server").symlink_to("openssh/sftp-server")
    return root


PROGRAMS = (ssh.DROPBEAR, ssh.SFTP_SERVER)


def test_programs_libraries_of_libraries_and_the_loader(tree: Path) -> None:
    found = {path: source.relative_to(tree) for path, source, _ in resolve(tree, PROGRAMS)}
    assert found == {
        "/usr/sbin/dropbear": Path("usr/sbin/dropbear"),
        "/usr/lib/sftp-server": Path("usr/lib/openssh/sftp-server"),
        f"/{LIB}/libnear.so.1": Path(LIB, "libnear.so.1.0"),
        f"/{LIB}/libdeep.so.3": Path(LIB, "libdeep.so.3.1"),
        f"/lib64/{LOADER}": Path("lib/x86_64-linux-gnu", LOADER),
    }


def test_the_loader_lies_where_the_programs_ask_for_it(tree: Path) -> None:
    """A Debian in which /lib64 is a link of the base system, and in no package."""
    shutil.rmtree(tree / "lib64")
    paths = [path for path, _, _ in resolve(tree, PROGRAMS)]
    assert f"/lib64/{LOADER}" in paths


@pytest.mark.parametrize("name", ["libdeep.so.3", "libnear.so.1"])
def test_a_library_that_no_package_has(tree: Path, name: str) -> None:
    (tree / LIB / name).unlink()
    with pytest.raises(BadInput, match="lack what") as caught:
        resolve(tree, PROGRAMS)
    assert name in caught.value.observed


def test_a_program_that_no_package_has(tree: Path) -> None:
    (tree / "usr/sbin/dropbear").unlink()
    with pytest.raises(BadInput, match="no /usr/sbin/dropbear"):
        resolve(tree, PROGRAMS)


def test_a_link_does_not_lead_out_of_the_tree(tree: Path) -> None:
    (tree / "usr/sbin/dropbear").unlink()
    (tree / "usr/sbin/dropbear").symlink_to("/bin/true")
    with pytest.raises(BadInput, match="no /usr/sbin/dropbear"):
        resolve(tree, PROGRAMS)
    (tree / "usr/sbin/dropbear").unlink()
    (tree / "usr/sbin/dropbear").symlink_to("../../../../../../../../../bin/true")
    with pytest.raises(BadInput, match="no /usr/sbin/dropbear"):
        resolve(tree, PROGRAMS)


def test_what_is_no_program(tree: Path) -> None:
    (tree / "usr/sbin/dropbear").write_text("#!/bin/sh\n")
    with pytest.raises(BadInput, match="no program for the guest"):
        resolve(tree, PROGRAMS)


class FakeApt:
    """A Debian whose packages are folders of this test."""

    folders: dict[str, Path]
    asked: list[str]
    offline = False

    def __init__(self, *_: object) -> None:
        pass

    def update(self) -> None:
        if self.offline:
            raise HostLacks("no network", hint="see whether the network is right")

    def closure(self, names, _follow):
        type(self).asked += names
        return tuple(IndexEntry(PackageRecord(name, "1", name * 3), 1, ()) for name in names)

    def download(self, entries, folder):
        (folder / "debs").mkdir()
        for entry in entries:
            (folder / "debs" / entry.record.name).touch()
        return {entry.record.name: folder / "debs" / entry.record.name for entry in entries}


@pytest.fixture
def debian(cache: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeApt]:
    box = tmp_path / "box"
    (box / "usr/bin").mkdir(parents=True)
    (box / "usr/bin/busybox").write_text("#!/bin/sh\necho sh\necho busybox\necho cat\n")
    (box / "usr/bin/busybox").chmod(0o755)
    empty = tmp_path / "empty"
    empty.mkdir()
    folders = {"dropbear-bin": tree, "openssh-sftp-server": empty, "busybox-static": box}
    fake = type("Fake", (FakeApt,), {"folders": folders, "asked": []})

    def unpack(deb: Path, folder: Path) -> None:
        shutil.copytree(folders[deb.name], folder, symlinks=True, dirs_exist_ok=True)

    assert not cache.exists()
    monkeypatch.setattr(packages, "Apt", fake)
    monkeypatch.setattr(packages, "unpack", unpack)
    return fake


def test_the_payload_and_that_it_is_kept(debian: type[FakeApt]) -> None:
    payload = ssh_payload(SilentProgress())
    by_path = {file.path: file for file in payload.files}
    assert by_path["/usr/sbin/dropbear"].source.read_bytes()[:4] == b"\x7fELF"
    assert all(file.source.is_file() and not file.source.is_symlink() for file in payload.files)
    assert payload.shell.path == "/bin/busybox"
    assert payload.links == ("cat", "sh")
    assert {record.name for record in payload.packages} == set(debian.folders)

    debian.offline = True
    debian.asked.clear()
    assert ssh_payload(SilentProgress()) == payload
    assert debian.asked == []


def test_without_a_network_it_says_what_to_do(debian: type[FakeApt]) -> None:
    debian.offline = True
    with pytest.raises(HostLacks) as caught:
        ssh_payload(SilentProgress())
    assert caught.value.hint


def test_packages_that_do_not_fit_together_are_not_kept(debian: type[FakeApt], cache: Path) -> None:
    (debian.folders["dropbear-bin"] / LIB / "libdeep.so.3").unlink()
    with pytest.raises(BadInput):
        ssh_payload(SilentProgress())
    assert not any("ssh-server" in folder.name for folder in (cache / "packages").iterdir())
    assert not (cache / "pointers/package-ssh-server.json").exists()


def test_a_set_is_made_once(debian: type[FakeApt]) -> None:
    def twice() -> Path:
        return unpacked("box", ["busybox-static"], "$^", SilentProgress(), lambda _: {"x": 1})[0]

    assert twice() == twice()
    assert debian.asked == ["busybox-static"]
