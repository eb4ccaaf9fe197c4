# SPDX-License-Identifier: MIT
"""apt itself is played by scripts: what is tested is what is made of its answers."""

import hashlib
from pathlib import Path

import pytest

from harness.errors import BadInput, HostLacks
from harness.images import KernelSelector, SilentProgress, prepare_kernel
from harness.images.apt import Apt, parse_depends, parse_index
from harness.images.store import CacheUnusable, Store

PARAGRAPH = """\
Package: {name}
Version: 6.1.2-1
Depends: {depends}
Description: a kernel
 with a second line: and a colon
Filename: pool/x.deb
Size: 5
SHA256: {sha}
"""
CONTENT = b"a deb"
GOOD = hashlib.sha256(CONTENT).hexdigest()

FAKE_GET = """#!/bin/sh
for last; do :; done
case " $* " in
*" update "*) {update} ;;
*" download "*)
	status=$(echo "$*" | sed 's/.*Status-Fd=\\([0-9]*\\).*/\\1/')
	echo dlstatus:1:50.0:Retrieving >"/dev/fd/$status"
	{download}
	;;
esac
"""


class Host:
    """A host whose apt says what a test wants."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        monkeypatch.setenv("PATH", f"{self.folder}:/usr/bin:/bin")
        self.apt_get()
        self.index({})

    def apt_get(self, update: str = "echo Hit:1", download: str = "") -> None:
        self._script("apt-get", FAKE_GET.format(update=update, download=download or ":"))

    def index(self, packages: dict[str, str], sha: str = GOOD) -> None:
        for old in self.folder.glob("*.package"):
            old.unlink()
        for name, depends in packages.items():
            text = PARAGRAPH.format(name=name, depends=depends, sha=sha)
            (self.folder / f"{name}.package").write_text(text)
        here = self.folder
        self._script(
            "apt-cache", f'#!/bin/sh\nfor n; do cat "{here}/${{n%%=*}}.package" 2>/dev/null && echo; done\n'
        )

    def _script(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)


pytestmark = pytest.mark.usefixtures("cache", "host")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


@pytest.fixture
def apt(cache: Path) -> Apt:
    return Apt(Store(cache), SilentProgress())


def test_depends() -> None:
    text = (
        "linux-base (>= 4.12~), a-common (= 1.2-3~deb12u1), img (= 1) | img-unsigned (= 1), gcc-12, perl:any"
    )
    assert parse_depends(text) == ("linux-base", "a-common=1.2-3~deb12u1", "img=1", "gcc-12", "perl")
    assert parse_depends("") == ()


def test_index() -> None:
    entries = parse_index(PARAGRAPH.format(name="x", depends="y", sha=GOOD) + "\nPackage: half\n\n")
    assert [(e.record.name, e.record.version, e.size, e.depends) for e in entries] == [
        ("x", "6.1.2-1", 5, ("y",))
    ]


def test_the_closure_follows_kernel_parts_only(host: Host, apt: Apt) -> None:
    host.index(
        {
            "linux-image-amd64": "linux-image-6.1-amd64 (= 6.1.2-1)",
            "linux-image-6.1-amd64": "kmod, linux-base (>= 4), initramfs-tools | dracut",
            "linux-headers-amd64": "linux-headers-6.1-amd64 (= 6.1.2-1)",
            "linux-headers-6.1-amd64": "linux-kbuild-6.1 (>= 6.1.2-1), gcc-12",
            "linux-kbuild-6.1": "libelf1",
        }
    )
    apt.update()
    entries = apt.closure(["linux-image-amd64", "linux-headers-amd64"], r"linux-(image|headers|kbuild)-")
    assert [entry.record.name for entry in entries] == [
        "linux-headers-6.1-amd64",
        "linux-headers-amd64",
        "linux-image-6.1-amd64",
        "linux-image-amd64",
        "linux-kbuild-6.1",
    ]


def test_a_package_no_source_has() -> None:
    with pytest.raises(BadInput, match=r"none of this host's package sources has linux-image-6\.12-amd64"):
        prepare_kernel(KernelSelector(recipe="debian-6.12"), SilentProgress())


def test_sources_that_cannot_be_reached(host: Host) -> None:
    host.apt_get(update="echo 'Err:1 nowhere'; echo 'E: Failed to fetch'; exit 100")
    with pytest.raises(HostLacks, match="could not be fetched") as caught:
        prepare_kernel(KernelSelector(), SilentProgress())
    assert "E: Failed to fetch" in caught.value.evidence


def test_a_newer_debian_does_not_give_another_kernel_under_an_old_name(host: Host) -> None:
    host.index(
        {
            "linux-image-cloud-amd64": "linux-image-6.12.1+deb13-cloud-amd64 (= 6.1.2-1)",
            "linux-image-6.12.1+deb13-cloud-amd64": "",
            "linux-headers-cloud-amd64": "",
        }
    )
    with pytest.raises(BadInput, match=r"another kernel than 6\.1 for debian-6\.1-cloud") as caught:
        prepare_kernel(KernelSelector(), SilentProgress())
    assert caught.value.observed == "linux-image-6.12.1+deb13-cloud-amd64"


def test_a_disk_that_is_full_is_not_taken_for_a_network_that_is_down(host: Host) -> None:
    host.apt_get(update="echo 'E: Write error - write (28: No space left on device)'; exit 100")
    with pytest.raises(CacheUnusable, match="full"):
        prepare_kernel(KernelSelector(), SilentProgress())


def test_lists_that_could_not_be_refreshed_are_spoken_of(host: Host, cache: Path) -> None:
    class Heard(SilentProgress):
        said = ""

        def note(self, text: str) -> None:
            self.said += text

    heard = Heard()
    host.apt_get(update="echo 'Err:1 nowhere'; exit 100")
    Apt(Store(cache), heard).update(force=True)
    assert "Err:1 nowhere" in heard.said


def test_another_source_that_fails_does_not_matter(host: Host, apt: Apt) -> None:
    host.apt_get(update="echo 'E: third party'; exit 100")
    host.index({"linux-image-amd64": "libc6"})
    apt.update()
    assert len(apt.closure(["linux-image-amd64"], "linux-")) == 1


def test_lists_are_fetched_once_an_hour_unless_forced(host: Host, apt: Apt, tmp_path: Path) -> None:
    host.apt_get(update=f"echo x >> {tmp_path}/updates")
    for force in (False, False, True):
        apt.update(force=force)
    assert (tmp_path / "updates").read_text() == "x\nx\n"


def test_a_download_is_verified(host: Host, apt: Apt, tmp_path: Path) -> None:
    host.index({"linux-image-amd64": ""})
    host.apt_get(download=f"printf '{CONTENT.decode()}' > linux-image-amd64_6.1.2-1_amd64.deb")
    apt.update()
    entries = apt.closure(["linux-image-amd64"], "linux-")
    found = apt.download(entries, tmp_path)
    assert found["linux-image-amd64"].read_bytes() == CONTENT
    host.apt_get(download="printf 'other' > linux-image-amd64_6.1.2-1_amd64.deb")
    with pytest.raises(HostLacks, match="damaged") as caught:
        apt.download(entries, tmp_path)
    assert GOOD in caught.value.tried


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("echo 'E: Failed to fetch'; exit 100", HostLacks, "could not be downloaded"),
        ("echo 'E: You do not have enough free space in /x'; exit 100", CacheUnusable, "full"),
        ("echo 'write (28: No space left on device)'; exit 100", CacheUnusable, "full"),
        (":", HostLacks, "left 0 files"),
    ],
)
def test_downloads_that_fail(host: Host, cache: Path, script: str, kind: type, message: str) -> None:
    host.index({"linux-image-cloud-amd64": "", "linux-headers-cloud-amd64": ""})
    host.apt_get(download=script)
    with pytest.raises(kind, match=message):
        prepare_kernel(KernelSelector(), SilentProgress())
    assert list((cache / "kernels").iterdir()) == []


def test_a_host_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostLacks, match="need Debian's apt"):
        prepare_kernel(KernelSelector(), SilentProgress())
