# SPDX-License-Identifier: MIT
"""Guests from snapshots: clean, proved, and a boot wherever that cannot be."""

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import BadInput
from harness.images import GuestImage, SilentProgress
from harness.images.store import Store
from harness.iokit import IOKit, kIODirectionInOut, kIOMapWriteCombineCache
from harness.link import ChannelBroken, Guest, GuestOptions, In, Nr, Out, StartKind, origin
from harness.oracle import MemoryType, Oracle
from harness.vm import GuestPanicked, SnapshotStore, SnapshotUnusable

WC = kIODirectionInOut | kIOMapWriteCombineCache

pytestmark = pytest.mark.usefixtures("rewinds_at_any_age")


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def snapshots(cache: Path) -> SnapshotStore:
    return SnapshotStore(Store(cache), Notes())


@pytest.fixture
def options() -> GuestOptions:
    return GuestOptions(memory_mib=256)


@pytest.fixture
def restored(guest_image: GuestImage, options: GuestOptions, snapshots: SnapshotStore) -> Iterator[Guest]:
    """A guest that has come from a snapshot, whichever test runs first."""
    with Guest(guest_image, options, snapshots) as guest:
        if guest.start.how is StartKind.BOOTED:
            guest.restore()
        assert guest.start.how is StartKind.RESTORED
        yield guest


def test_the_first_boots_and_the_next_does_not(guest_image, options, tmp_path):
    snapshots = SnapshotStore(Store(tmp_path), Notes())
    with Guest(guest_image, options, snapshots) as first:
        assert first.start.how is StartKind.BOOTED
        assert first.start.why == ""
        nonce = first.hello.boot_nonce
        assert not any(first.hello.restore_nonce)
        assert first.link.ping(b"alive") == b"alive"
    with Guest(guest_image, options, snapshots) as second:
        assert second.start.how is StartKind.RESTORED
        assert second.hello.boot_nonce == nonce
        assert any(second.hello.restore_nonce)
        assert second.link.hello() == second.hello
        with Guest(guest_image, options, snapshots) as third:  # beside it
            assert third.hello.boot_nonce == nonce
            assert third.hello.restore_nonce != second.hello.restore_nonce
            third.write_file("/tmp/third", b"here")
            assert third.read_file("/tmp/third") == b"here"
            with pytest.raises(Exception, match="No such file"):
                second.read_file("/tmp/third")
    assert snapshots.progress.said == []


def test_nothing_of_before_is_left(restored):
    guest, oracle = restored, Oracle(restored.machine)
    for _ in range(3):
        iokit = IOKit(guest)
        assert iokit.info().live == 0
        with oracle.frozen() as view:
            assert view.direct_map_anomalies() == ()
        buffers = [iokit.withOptions(WC, 65536, 4096) for _ in range(8)]
        assert oracle.types_of(buffers[0]) == {MemoryType.WC}
        buffers[0].writeBytes(0, b"secret" * 100)
        where = buffers[0].getPhysicalSegment(0).address
        guest.write_file("/tmp/left", b"over" * 10_000)
        guest.write_file("/proc/sys/kernel/panic_on_warn", b"1")
        assert guest.peer.alive
        start = guest.restore()
        assert start.how is StartKind.REWOUND
        assert guest.machine.ram.read(where, 6) != b"secret"
        assert guest.read_file("/proc/sys/kernel/panic_on_warn") == b"0\n"
        with pytest.raises(Exception, match="No such file"):
            guest.read_file("/tmp/left")


def test_what_was_held_before_is_gone_and_says_so(restored):
    iokit = IOKit(restored)
    buffer = iokit.withOptions(WC, 4096)
    generation = restored.generation
    restored.restore()
    assert restored.generation == generation + 1
    with pytest.raises(BadInput, match="restored"):
        buffer.getPhysicalSegment(0)
    assert "its guest was restored" in repr(buffer)  # a failing test shows it, and must not fail by that
    live = IOKit(restored)
    kept = live.withOptions(WC, 4096)
    iokit.close()  # closes descriptors of the same numbers, were it not for the generation
    assert kept.getLength() == 4096
    assert live.info().live == 1


def test_requests_under_way_end_and_bytes_under_way_do_no_harm(restored):
    port = restored.machine.port("org.iobmd.link")
    stuck = restored.link.start(Nr.NANOSLEEP, In((100).to_bytes(16, "little")), 0, what="a long sleep")
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            stuck.wait(30)
        except ChannelBroken as error:
            caught.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    whole = restored.link.protocol.encode(restored.link.protocol.ping, 12345, b"x" * 50_000)
    port.setblocking(True)
    port.sendall(whole + whole[:33_333])
    restored.restore()
    waiter.join(5)
    assert not waiter.is_alive()
    assert len(caught) == 1
    for n in range(20):
        assert restored.link.ping(bytes([n])) == bytes([n])


def test_the_peer_is_another_after_a_restore(restored):
    before = restored.peer
    restored.restore()
    assert not before.alive
    after = restored.peer
    assert after is not before
    assert after.link.ping(b"new") == b"new"


def test_two_restores_draw_different_numbers(restored):
    drawn = []
    for _ in range(3):
        restored.restore()
        drawn.append(restored.syscall(318, Out(32), 32, 0, what="getrandom").outputs[0])
    assert len(set(drawn)) == 3


def test_the_clocks_are_right(restored):
    uptimes = []
    for _ in range(2):
        restored.restore()
        uptimes.append(float(restored.read_file("/proc/uptime").split()[0]))
        clock = restored.syscall(Nr.CLOCK_GETTIME, 0, Out(16), what="clock_gettime").outputs[0]
        assert abs(int.from_bytes(clock[:8], "little") - time.time()) < 5
    assert abs(uptimes[0] - uptimes[1]) < 5  # it goes on from the snapshot, not from the life before


def panic(guest: Guest) -> None:
    fd = guest.open("/proc/sysrq-trigger", os.O_WRONLY)
    with pytest.raises(GuestPanicked):
        guest.link.start(Nr.WRITE, fd, In(b"c"), 1).wait(10)


def kill(guest: Guest) -> None:
    os.kill(guest.machine.pid, signal.SIGKILL)


def stop(guest: Guest) -> None:
    os.kill(guest.machine.pid, signal.SIGSTOP)


def quit_by_protocol(guest: Guest) -> None:
    guest.machine.qmp.execute("quit")


def pause(guest: Guest) -> None:
    """Pause the vCPUs for good, behind the machine's back."""
    guest.machine.qmp.execute("stop")


@pytest.mark.parametrize(
    ("ruin", "expected"),
    [
        (panic, StartKind.RESTORED),
        (kill, StartKind.RESTORED),
        (stop, StartKind.RESTORED),
        (quit_by_protocol, StartKind.RESTORED),
        (pause, StartKind.REWOUND),
    ],
)
def test_a_ruined_guest_comes_back(restored, ruin, expected):
    pid = restored.machine.pid
    ruin(restored)
    assert restored.restore().how is expected
    assert (restored.machine.pid == pid) is (expected is StartKind.REWOUND)
    iokit = IOKit(restored)
    buffer = iokit.withOptions(WC, 8192)
    assert Oracle(restored.machine).types_of(buffer) == {MemoryType.WC}
    assert restored.restore().how is StartKind.REWOUND
    if expected is StartKind.RESTORED:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_log_of_the_life_before_is_kept(guest_image, options, snapshots):
    with Guest(guest_image, options, snapshots) as guest:
        panic(guest)
        guest.restore()
        logs = sorted(path.name for path in guest.machine.workdir.glob("console*.log"))
        assert logs == ["console.1.log", "console.log"]
        assert "sysrq triggered crash" in (guest.machine.workdir / "console.1.log").read_text()
        assert "panic" not in guest.machine.console.text()


def only_folder(cache: Path) -> Path:
    (folder,) = (path for path in (cache / "snapshots").iterdir() if not path.name.startswith("."))
    return folder


def truncate(folder: Path) -> None:
    os.truncate(folder / "ram", 1 << 20)


def flip_a_bit(folder: Path) -> None:
    with (folder / "ram").open("r+b") as file:
        file.seek(5 << 20)
        byte = file.read(1)[0]
        file.seek(5 << 20)
        file.write(bytes([byte ^ 4]))


def garble_state(folder: Path) -> None:
    (folder / "state").write_bytes(b"QFI\xfb" + bytes(1000))


def another_guests(folder: Path) -> None:
    path = folder / "snapshot.json"
    meta = json.loads(path.read_text())
    meta["memo"]["boot_nonce"] = os.urandom(16).hex()
    path.write_text(json.dumps(meta))


def of_a_later_time(folder: Path) -> None:
    path = folder / "snapshot.json"
    meta = json.loads(path.read_text())
    meta["memo"]["monotonic_ns"] += 10**12
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "bytes, not"),
        (flip_a_bit, "checksum"),
        (garble_state, "checksum"),
        (another_guests, "boot nonce"),
        (of_a_later_time, "monotonic clock"),
    ],
)
def test_a_bad_snapshot_is_replaced_with_a_word(guest_image, options, tmp_path, damage, said):
    snapshots = SnapshotStore(Store(tmp_path), Notes())
    with Guest(guest_image, options, snapshots):
        pass
    damage(only_folder(tmp_path))
    with Guest(guest_image, options, snapshots) as guest:
        assert guest.start.how is StartKind.BOOTED
        assert guest.link.ping(b"x") == b"x"
    assert len(snapshots.progress.said) == 1
    assert said in snapshots.progress.said[0]
    with Guest(guest_image, options, snapshots) as guest:
        assert guest.start.how is StartKind.RESTORED


def test_a_snapshot_ruined_while_its_guest_runs_ends_in_a_boot(guest_image, options, tmp_path):
    snapshots = SnapshotStore(Store(tmp_path), Notes())
    with Guest(guest_image, options, snapshots) as guest:
        guest.restore()
        truncate(only_folder(tmp_path))
        assert guest.restore().how is StartKind.BOOTED
        assert guest.restore().how is StartKind.RESTORED  # from the one that was made meanwhile
        assert IOKit(guest).info().live == 0
    assert "bytes, not" in snapshots.progress.said[0]


def test_a_cache_that_cannot_be_written_is_no_obstacle(guest_image, options, tmp_path):
    (tmp_path / "snapshots").write_text("no folder")
    with Guest(guest_image, options, SnapshotStore(Store(tmp_path), Notes())) as guest:
        assert guest.start.how is StartKind.BOOTED
        assert guest.start.why.startswith("no snapshot: ")
        assert guest.restore().how is StartKind.BOOTED


def test_a_device_that_cannot_be_saved_means_a_boot_and_says_so(guest_image, snapshots):
    options = GuestOptions(memory_mib=256, devices=("nvme,serial=one",))
    with Guest(guest_image, options, snapshots) as guest:
        assert guest.start.how is StartKind.BOOTED
        assert "nvme" in guest.start.why
        assert guest.link.ping(b"x") == b"x"
        assert guest.restore().how is StartKind.BOOTED


def test_a_device_without_a_state_is_put_back_where_it_was(guest_image, snapshots):
    options = GuestOptions(memory_mib=256, devices=("edu",))
    path = "/proc/bus/pci/00/02.0"
    with Guest(guest_image, options, snapshots) as guest:
        before = guest.read_file(path)[:64]
        assert before[:4] == bytes.fromhex("3412e811")
        assert any(before[0x10:0x14])
        for _ in range(2):
            guest.restore()
            assert guest.read_file(path)[:64] == before
            window = int.from_bytes(before[0x10:0x14], "little") & ~0xF
            # Its identification register, read as a driver would.
            assert guest.machine.qmp.hmp(f"xp /1wx {window:#x}").split()[-1] == "0x010000ed"


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param({"cpus": 2}, id="2 CPUs"),
        pytest.param({"machine": "pc"}, id="pc"),
        pytest.param({"memory_mib": 3072}, id="RAM above 4 GiB"),
        pytest.param({"cpu": "kvm64"}, id="no RDRAND"),
        pytest.param({"devices": ("intel-iommu,intremap=off",), "cmdline": ("intel_iommu=on",)}, id="IOMMU"),
    ],
)
def test_other_machines_come_back_as_well(guest_image, snapshots, machine):
    options = GuestOptions(**{"memory_mib": 256} | machine)
    for expected in (StartKind.BOOTED, StartKind.RESTORED):
        with Guest(guest_image, options, snapshots) as guest:
            assert guest.start.how is expected
            for _ in range(2):
                guest.restore()
                buffer = IOKit(guest).withOptions(WC, 65536)
                assert Oracle(guest.machine).types_of(buffer) == {MemoryType.WC}
            # What an IOMMU has translated is in no state: such a machine needs a new QEMU.
            translates = any("iommu" in device for device in options.devices)
            assert guest.start.how is (StartKind.RESTORED if translates else StartKind.REWOUND)


def test_a_kernel_that_unpacks_itself_comes_back_as_well(guest_image, options, snapshots):
    kernel = dataclasses.replace(guest_image.kernel, boot_image=guest_image.kernel.vmlinuz)
    with Guest(dataclasses.replace(guest_image, kernel=kernel), options, snapshots) as guest:
        assert guest.start.how is StartKind.BOOTED
        assert [guest.restore().how for _ in range(2)] == [StartKind.RESTORED, StartKind.REWOUND]
        buffer = IOKit(guest).withOptions(WC, 65536)
        with Oracle(guest.machine).frozen() as view:
            assert view.types_of(buffer) == {MemoryType.WC}
            assert view.levels == 5


def test_one_makes_it_and_the_others_wait(guest_image, options, tmp_path):
    kinds: list[StartKind] = []

    def run() -> None:
        with Guest(guest_image, options, SnapshotStore(Store(tmp_path), Notes())) as guest:
            kinds.append(guest.start.how)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(kind.name for kind in kinds) == ["BOOTED", "RESTORED", "RESTORED"]


def test_a_clock_that_would_leap_too_far_means_another_qemu(restored, monkeypatch):
    """Within one QEMU the time-stamp counter cannot be put back; the clocks are ahead by the lives before."""
    first = float(restored.read_file("/proc/uptime").split()[0])
    restored.syscall(Nr.NANOSLEEP, In((1).to_bytes(8, "little") + bytes(8)), 0, what="sleep")
    assert restored.restore().how is StartKind.REWOUND
    ahead = float(restored.read_file("/proc/uptime").split()[0])
    assert ahead >= first + 0.9
    monkeypatch.setattr(origin, "REWIND_SECONDS_MAX", 1.0)
    assert restored.restore().how is StartKind.RESTORED
    assert float(restored.read_file("/proc/uptime").split()[0]) < ahead


def test_without_a_store_a_restore_is_a_boot(guest_image, options):
    with Guest(guest_image, options) as guest:
        nonce = guest.hello.boot_nonce
        assert guest.restore().how is StartKind.BOOTED
        assert guest.hello.boot_nonce != nonce
        assert [start.how for start in guest.starts] == [StartKind.BOOTED] * 2


def write(guest: Guest, fd: int, data: bytes) -> None:
    guest.syscall(Nr.WRITE, fd, In(data), len(data), what="write")


def test_a_moment_that_was_kept_is_the_one_that_comes_back(guest_image, options, snapshots, tmp_path):
    with Guest(guest_image, options, snapshots) as guest:
        fd = guest.open("/kept", os.O_CREAT | os.O_RDWR)
        write(guest, fd, b"before")
        guest.keep(tmp_path)
        write(guest, fd, b" and after")
        for expected in (StartKind.RESTORED, StartKind.REWOUND):
            assert guest.restore().how is expected
            assert guest.read_file("/kept") == b"before"
            write(guest, fd, b"!")  # it is open, and where it was
            assert guest.read_file("/kept") == b"before!"
        assert guest.peer.alive
        with pytest.raises(BadInput, match="peer"):
            guest.keep(tmp_path)
        (tmp_path / "ram").unlink()
        kill(guest)
        with pytest.raises(SnapshotUnusable):
            guest.restore()  # a boot would be another moment
