# SPDX-License-Identifier: MIT
"""Guest RAM into a snapshot and back, byte for byte, and what is refused."""

import contextlib
import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HostExhausted
from harness.images import SilentProgress
from harness.images.store import CacheUnusable, Store
from harness.vm import GuestRam, MachineSpec, Qemu, SnapshotStore, SnapshotUnusable
from harness.vm import snapshot as room
from harness.vm.snapshot import Snapshot, open_snapshot, write_snapshot
from harness.vm.stub import has_pvh_entry, memory_file, stub_kernel

PAGE = 4096
SIZE = 2 << 20
FACTS = {"kernel": "k", "machine": "m"}
#: Two stretches with a hole between, as above and below 4 GiB.
RANGES = ((0, SIZE // 2), (4 << 30, SIZE // 2))


@contextlib.contextmanager
def memory() -> Iterator[GuestRam]:
    with memory_file("test-ram") as fd:
        os.truncate(fd, SIZE)
        ram = GuestRam(fd, SIZE, RANGES)
        try:
            yield ram
        finally:
            ram.close()


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    with memory() as ram:
        yield ram


def contents(ram: GuestRam) -> bytes:
    return b"".join(ram.read(start, length) for start, length in ram.ranges)


def gpa(offset: int) -> int:
    return offset if offset < SIZE // 2 else offset - SIZE // 2 + (4 << 30)


def stored(folder: Path, ram: GuestRam, **memo: object) -> Snapshot:
    folder.mkdir(parents=True, exist_ok=True)
    write_snapshot(folder, ram, b"state", facts=FACTS, memo=memo)
    return open_snapshot(folder, FACTS)


WRITES = st.lists(
    st.tuples(st.integers(0, SIZE // PAGE - 1), st.integers(1, 3 * PAGE), st.integers(0, 255)), max_size=8
)


def scribble(ram: GuestRam, writes: list[tuple[int, int, int]]) -> None:
    for page, length, value in writes:
        start = page * PAGE
        end = min(start + length, SIZE // 2 if start < SIZE // 2 else SIZE)
        ram.write(gpa(start), bytes([value]) * (end - start))


@given(before=WRITES, after=WRITES, elsewhere=WRITES)
def test_ram_comes_back_whatever_was_written_since(tmp_path_factory, before, after, elsewhere) -> None:
    with memory() as ram, memory() as other:
        scribble(ram, before)
        wanted = contents(ram)
        snapshot = stored(tmp_path_factory.mktemp("snap"), ram)
        scribble(ram, after)
        snapshot.rewind(ram)
        assert contents(ram) == wanted
        snapshot.fill(other)
        assert contents(other) == wanted
        scribble(other, elsewhere)
        snapshot.rewind(other)
        assert contents(other) == wanted


def test_zeros_take_no_room_and_untouched_memory_stays_so(ram: GuestRam, tmp_path: Path) -> None:
    ram.write(0, bytes(SIZE // 2))  # touched, and zero
    ram.write(1 << 19, b"x")
    snapshot = stored(tmp_path / "s", ram)
    assert 0 < snapshot.ram_bytes <= 128 << 10
    ram.write(gpa(SIZE - PAGE), b"later")
    snapshot.rewind(ram)
    assert sum(length for _, length in ram.populated()) == snapshot.ram_bytes


def test_a_memo_is_remembered(ram: GuestRam, tmp_path: Path) -> None:
    assert stored(tmp_path / "s", ram, nonce="ab", at=7).memo == {"nonce": "ab", "at": 7}


def shorten(folder: Path) -> None:
    os.truncate(folder / "ram", (folder / "ram").stat().st_size - PAGE)


def flip(folder: Path, name: str, at: int) -> None:
    data = bytearray((folder / name).read_bytes())
    data[at] ^= 1
    (folder / name).write_bytes(data)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "snapshot.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(shorten, "bytes, not", id="truncated"),
        pytest.param(lambda folder: (folder / "ram").unlink(), "No such file", id="no RAM"),
        pytest.param(lambda folder: flip(folder, "state", 2), "another checksum", id="state"),
        pytest.param(lambda folder: (folder / "state").unlink(), "No such file", id="no state"),
        pytest.param(lambda folder: (folder / "snapshot.json").unlink(), "missing", id="no description"),
        pytest.param(lambda folder: (folder / "snapshot.json").write_text("{"), "no JSON", id="half"),
        pytest.param(lambda folder: edit(folder, format=room.FORMAT + 1), "format", id="a later format"),
        pytest.param(lambda folder: edit(folder, facts={"kernel": "k"}), "machine", id="foreign"),
        pytest.param(lambda folder: edit(folder, extents=[["a", 1]]), "invalid", id="extents"),
        pytest.param(lambda folder: edit(folder, memo=None), "NoneType", id="memo"),
    ],
)
def test_what_cannot_be_used_is_refused(
    ram: GuestRam, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    ram.write(0, b"x" * PAGE * 64)
    stored(tmp_path, ram)
    damage(tmp_path)
    with pytest.raises(SnapshotUnusable) as caught:
        open_snapshot(tmp_path, FACTS)
    assert said in caught.value.observed


@pytest.mark.parametrize("at", [0, PAGE, 64 * PAGE - 1])
def test_one_wrong_bit_is_noticed_before_a_guest_runs_on_it(ram: GuestRam, tmp_path: Path, at: int) -> None:
    ram.write(0, b"x" * PAGE * 64)
    snapshot = stored(tmp_path, ram)
    flip(tmp_path, "ram", at)
    with memory() as other, pytest.raises(SnapshotUnusable, match="cannot be used"):
        snapshot.fill(other)


def test_one_that_shrinks_while_it_is_used_is_noticed(ram: GuestRam, tmp_path: Path) -> None:
    ram.write(0, b"x" * PAGE * 64)
    snapshot = stored(tmp_path, ram)
    shorten(tmp_path)
    for use in (snapshot.fill, snapshot.rewind):
        with pytest.raises(SnapshotUnusable):
            use(ram)


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[MachineSpec, Qemu]:
    for name in ("kernel", "initrd", "qemu"):
        (tmp_path / name).write_bytes(name.encode())
    return (
        MachineSpec(kernel=tmp_path / "kernel", initrd=tmp_path / "initrd", cmdline=("a", "b")),
        Qemu(tmp_path / "qemu", "7.2.0", "QEMU emulator version 7.2.0 (Debian 1:7.2)"),
    )


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(Store(tmp_path / "cache"), Notes())


def build(ram: GuestRam, slot) -> Callable[[Path], None]:
    return lambda folder: write_snapshot(folder, ram, b"state", facts=slot.facts, memo={})


def test_any_change_asks_for_another_snapshot(store, parts, tmp_path) -> None:
    spec, qemu = parts
    keys = [store.slot(spec, "tcg", qemu).key]
    assert store.slot(spec, "tcg", qemu).key == keys[0]
    keys.append(store.slot(spec, "kvm", qemu).key)
    for change in (
        {"cmdline": ("a",)}, {"cmdline": ("a b",)}, {"memory_mib": 1024}, {"cpus": 2}, {"machine": "pc"},
        {"cpu": "kvm64"}, {"ports": ("one",)}, {"devices": ("edu",)},
    ):  # fmt: skip
        other = MachineSpec(**{"kernel": spec.kernel, "initrd": spec.initrd, "cmdline": ("a", "b")} | change)
        keys.append(store.slot(other, "tcg", qemu).key)
    keys.append(store.slot(spec, "tcg", Qemu(qemu.path, "7.2.0", "QEMU emulator (Debian 1:7.3)")).key)
    for name in ("kernel", "initrd", "qemu"):
        (tmp_path / name).write_bytes(name.encode() + b"!")
        keys.append(store.slot(spec, "tcg", qemu).key)
    assert len(set(keys)) == len(keys)


def test_the_same_contents_elsewhere_are_the_same_machine(store, parts, tmp_path) -> None:
    spec, qemu = parts
    (tmp_path / "copy").write_bytes(spec.kernel.read_bytes())
    moved = MachineSpec(kernel=tmp_path / "copy", initrd=spec.initrd, cmdline=spec.cmdline)
    assert store.slot(moved, "tcg", qemu).key == store.slot(spec, "tcg", qemu).key


def test_one_is_made_once_and_found_again(store, parts, ram) -> None:
    slot = store.slot(parts[0], "tcg", parts[1])
    assert slot.find() is None
    made = slot.make(build(ram, slot))
    assert slot.make(lambda _: pytest.fail("made twice")).folder == made.folder == slot.folder
    found = slot.find()
    assert found is not None
    assert found.checksum == made.checksum


def test_a_damaged_one_is_thrown_away_with_a_word(store, parts, ram) -> None:
    slot = store.slot(parts[0], "tcg", parts[1])
    ram.write(0, b"x" * PAGE)
    slot.make(build(ram, slot))
    shorten(slot.folder)
    assert slot.find() is None
    assert not slot.folder.exists()
    assert [slot.key in note and "bytes, not" in note for note in store.progress.said] == [True]


def test_one_that_does_not_get_made_leaves_nothing(store, parts) -> None:
    slot = store.slot(parts[0], "tcg", parts[1])

    def fail(folder: Path) -> None:
        (folder / "ram").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slot.make(fail)
    assert slot.find() is None
    assert list((store.store.root / "snapshots").iterdir()) == []


def test_a_full_disk_is_named(store, parts) -> None:
    slot = store.slot(parts[0], "tcg", parts[1])

    def full(_: Path) -> None:
        raise OSError(28, os.strerror(28))

    with pytest.raises(CacheUnusable):
        slot.make(full)


def test_room_is_made_by_what_was_used_longest_ago(tmp_path, parts, ram) -> None:
    ram.write(0, os.urandom(1 << 20))
    store = SnapshotStore(Store(tmp_path / "cache"), Notes(), room=3_500_000)
    slots = [
        store.slot(MachineSpec(kernel=parts[0].kernel, initrd=parts[0].initrd, cpus=n), "tcg", parts[1])
        for n in range(1, 5)
    ]
    for when, slot in enumerate(slots[:3]):
        slot.make(build(ram, slot))
        os.utime(slot.folder, (when, when))
    assert slots[0].find() is not None  # used: now the youngest
    slots[3].make(build(ram, slots[3]))
    assert [slot.folder.is_dir() for slot in slots] == [True, False, True, True]


def test_the_stand_in_loads_nothing_and_has_the_entry_note(tmp_path) -> None:
    elf = ELFFile(io.BytesIO(stub_kernel()))
    assert elf["e_machine"] == "EM_X86_64"
    assert [segment["p_type"] for segment in elf.iter_segments()] == ["PT_NOTE"]
    (note,) = next(elf.iter_segments()).iter_notes()
    assert note["n_name"] == "Xen"
    assert len(note["n_descdata"]) == 4
    (tmp_path / "elf").write_bytes(stub_kernel())
    (tmp_path / "bz").write_bytes(b"MZ" + bytes(0x300))
    assert has_pvh_entry(tmp_path / "elf")
    assert not has_pvh_entry(tmp_path / "bz")


@pytest.mark.parametrize("at", ["state", "ram", "snapshot.json"])
def test_a_lack_of_descriptors_is_no_damage(store, parts, ram, monkeypatch, at) -> None:
    """A good snapshot must not be thrown away because this process can open nothing."""
    slot = store.slot(parts[0], "tcg", parts[1])
    made = slot.make(build(ram, slot))
    opened, plain = os.open, io.open

    def full(path):
        if isinstance(path, str | Path) and Path(path).name == at:
            raise OSError(errno.EMFILE, "Too many open files", str(path))

    def open_number(path, *rest, **more):
        full(path)
        return opened(path, *rest, **more)

    def open_file(path, *rest, **more):
        full(path)
        return plain(path, *rest, **more)

    monkeypatch.setattr("os.open", open_number)
    monkeypatch.setattr("io.open", open_file)
    with pytest.raises(HostExhausted):
        slot.find()
    monkeypatch.undo()
    assert slot.find() == made


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "no memory"), KeyboardInterrupt(), SystemExit(143)])
def test_what_stops_the_filling_is_what_is_told(ram, tmp_path, monkeypatch, error) -> None:
    """The mapping it copies from cannot be closed under the copy that was stopped."""
    ram.write(0, b"x" * PAGE)
    snapshot = stored(tmp_path, ram)

    def stop(fd: int, data: memoryview, offset: int) -> int:  # noqa: ARG001
        raise error

    with memory() as other:
        monkeypatch.setattr("os.pwrite", stop)
        with pytest.raises(type(error)) as caught:
            snapshot.fill(other)
    assert caught.value is error
