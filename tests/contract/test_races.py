# SPDX-License-Identifier: MIT
"""Two processes, several threads, and a death now and then: nobody oopses, nothing leaks.

The moves are drawn from a seed; which of them meet is up to the machine.  A descriptor may be closed under
whoever uses it, and the second process is killed in the middle of what it does.
"""

from __future__ import annotations

import errno
import os
import random
import threading

import pytest
from contract_stock import KINDS, PAGE, SECONDS, Stock, still_lost

from harness.iokit import IOKit, Task
from harness.iokit import constants as k
from harness.link import GuestOSError, Nr, PeerDied

MOVES = int(os.environ.get("IOBMD_RACE_MOVES", "400"))
DEATHS = 8
THREADS = 3

# What a closed, reused or vanished descriptor, or a vanished mapping, makes of a call.
HARMLESS = {errno.EBADF, errno.ENOTTY, errno.EFAULT, errno.EINVAL, errno.ESRCH, errno.EMFILE, errno.ENODEV}


class Table:
    """Descriptors of the agent that everybody may use, and close under the others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fds: list[int] = []

    def add(self, fd: int) -> None:
        with self._lock:
            self._fds.append(fd)

    def pick(self, chance: random.Random) -> int | None:
        with self._lock:
            return chance.choice(self._fds) if self._fds else None

    def remove(self, chance: random.Random) -> int | None:
        with self._lock:
            return self._fds.pop(chance.randrange(len(self._fds))) if self._fds else None


class Player:
    """One thread's moves in one process."""

    def __init__(
        self, seed: int, iokit: IOKit, table: Table, stop: threading.Event, limit: int = MOVES
    ) -> None:
        self.limit = limit
        self.chance = random.Random(seed)
        self.iokit, self.process, self.layouts = iokit, iokit.process, iokit.layouts
        self.table, self.stop = table, stop
        self.maps: list[tuple[int, int]] = []
        self.moves = 0
        self.failure: BaseException | None = None

    def play(self) -> None:
        try:
            while not self.stop.is_set() and self.moves < self.limit:
                self.moves += 1
                move = self.chance.choice(
                    [self.create, self.create, self.use, self.use, self.map, self.map, self.touch, self.unmap,
                     self.release, self.change]
                )  # fmt: skip
                self._harmless(move)
            for fd, _ in self.maps:
                self.process.close(fd)
        except BaseException as error:
            self.failure = error
            self.stop.set()

    def _harmless(self, move) -> None:
        try:
            move()
        except GuestOSError as error:
            if error.errno not in HARMLESS:
                raise

    def call(self, fd: int, name: str, struct_name: str, pointers=None, **fields: int) -> dict:
        layout = self.layouts.struct(struct_name)
        return layout.unpack(self.iokit.ioctl(fd, name, layout.pack(**fields), pointers).arg)

    def create(self) -> None:
        kind = dict(self.chance.choice(list(KINDS.values())))
        kind["factory"] = self.layouts.enum("iobmd_factory")[kind["factory"]]
        if "task" in kind:
            kind["task"] = self.layouts.enum("iobmd_task")[kind["task"].value]
        made = self.call(self.iokit.device, "CREATE", "iobmd_create", **kind)
        if made["fd"] >= 0:
            self.table.add(made["fd"])

    def release(self) -> None:
        fd = self.table.remove(self.chance)
        if fd is not None:
            self.process.close(fd)

    def here(self) -> int | None:
        return self.table.pick(self.chance)

    def use(self) -> None:
        fd = self.here()
        if fd is None:
            return
        at = self.layouts.struct("iobmd_transfer").fields["bytes"].offset
        self.call(fd, "WRITE_BYTES", "iobmd_transfer", {at: b"race"}, length=4)
        self.call(fd, "PREPARE", "iobmd_wiring")
        self.call(fd, "GET_PHYSICAL_SEGMENT", "iobmd_segment")
        self.call(fd, "READ_BYTES", "iobmd_transfer", {at: 64}, length=64)
        self.call(fd, "COMPLETE", "iobmd_wiring")

    def change(self) -> None:
        fd = self.here()
        if fd is not None:
            self.call(fd, "SET_PURGEABLE", "iobmd_purge", state=self.chance.randint(0, 5))
            self.call(fd, "DESCRIBE", "iobmd_description")

    def map(self) -> None:
        fd = self.here()
        if fd is None:
            return
        task = self.chance.choice([Task.CURRENT, Task.CURRENT, Task.KERNEL])
        made = self.call(
            fd, "CREATE_MAPPING", "iobmd_create_mapping", task=self.layouts.enum("iobmd_task")[task.value],
            options=k.kIOMapAnywhere | self.chance.choice([0, k.kIOMapUnique, k.kIOMapReadOnly]),
        )  # fmt: skip
        if made["fd"] >= 0:
            address = self.call(made["fd"], "DESCRIBE_MAPPING", "iobmd_mapping")["address"]
            self.maps.append((made["fd"], address if task is Task.CURRENT else 0))

    def touch(self) -> None:
        if self.maps:
            address = self.chance.choice(self.maps)[1]
            if address:
                self.process.peek(address, 64)
                self.process.poke(address, b"touched")

    def unmap(self) -> None:
        if self.maps:
            self.process.close(self.maps.pop(self.chance.randrange(len(self.maps)))[0])


class Visitor(Player):
    """The second process: uses what it takes from the agent, and its own."""

    def __init__(self, seed: int, iokit: IOKit, table: Table, stop: threading.Event, agent) -> None:
        super().__init__(seed, iokit, Table(), stop)
        self.agent, self.agents_table = agent, table
        self.busy = threading.Event()

    def here(self) -> int | None:
        if self.chance.random() < 0.5:
            return super().here()
        theirs = self.agents_table.pick(self.chance)
        if theirs is None:
            return None
        taken = self.process.take(theirs, self.agent)
        self.table.add(taken)
        return taken

    def play(self) -> None:
        """Live until killed, or until the others are done."""
        try:
            while not self.stop.is_set():
                self._harmless(
                    self.chance.choice(
                        [self.create, self.use, self.map, self.touch, self.unmap, self.release]
                    )
                )
                self.moves += 1
                self.busy.set()
        except PeerDied:
            pass
        except BaseException as error:
            self.failure = error
            self.stop.set()
        finally:
            self.busy.set()


def _play(guest, iokit, seed: int, moves: int, deaths: int) -> int:
    """One round; the moves the second processes made before they died."""
    chance = random.Random(seed)
    stop, table = threading.Event(), Table()
    players = [Player(seed * 100 + i, iokit, table, stop, moves) for i in range(THREADS)]
    threads = [threading.Thread(target=player.play) for player in players]
    for thread in threads:
        thread.start()
    visits = []
    for number in range(deaths):
        visitor = Visitor(seed * 1000 + number, IOKit(guest.peer), table, stop, guest)
        thread = threading.Thread(target=visitor.play)
        thread.start()
        visitor.busy.wait(SECONDS)
        thread.join(chance.uniform(0.02, 0.4))  # lives this much longer at most
        guest.peer.kill()
        thread.join(60)
        visits.append(visitor)
        assert not thread.is_alive()
    for thread in threads:
        thread.join(300)
    stop.set()
    while (fd := table.remove(chance)) is not None:
        guest.close(fd)
    failures = [player.failure for player in (*players, *visits) if player.failure]
    assert not failures, failures
    assert [player.moves for player in players] == [moves] * THREADS
    return sum(visit.moves for visit in visits)


@pytest.mark.parametrize("seed", [1, 2])
def test_two_processes_and_a_death(guest, iobmd, oracle, seed):
    guest.peek(_somewhere(guest), 1)  # the staging file is made once
    _play(guest, iobmd, seed + 50, MOVES // 4, 2)  # and so are the allocator's per-CPU slabs
    before = Stock(iobmd, oracle)
    visits = _play(guest, iobmd, seed, MOVES, DEATHS)
    assert visits >= DEATHS, "the second processes died before they did anything"
    assert guest.machine.console.panic is None
    assert still_lost(before, iobmd, oracle) == []


def _somewhere(guest) -> int:
    """Any address that can be read: the start of the agent's own program."""
    return int(guest.read_file("/proc/self/maps").split(b"-", 1)[0], 16)


def test_a_dead_process_takes_its_descriptors_along(guest, iobmd, oracle):
    """Every kind, mapped and prepared, in a process that is killed."""
    types = iobmd.info().types
    guest.peer.kill()
    before = Stock(iobmd, oracle)
    for kind in KINDS.values():
        if kind["options"] & k.kIOMapCacheMask == k.kIOMapWriteThruCache and "WT" not in types:
            continue
        session = IOKit(guest.peer)
        player = Player(1, session, Table(), threading.Event())
        for _ in range(4):
            fields = dict(kind)
            fields["factory"] = session.layouts.enum("iobmd_factory")[kind["factory"]]
            if "task" in fields:
                fields["task"] = session.layouts.enum("iobmd_task")[fields["task"].value]
            fd = player.call(session.device, "CREATE", "iobmd_create", **fields)["fd"]
            assert fd >= 0
            player.table.add(fd)
            player.map()
            player.call(fd, "PREPARE", "iobmd_wiring")
            player.touch()
        assert session.info().live == before.live + 4
        guest.peer.kill()
    assert still_lost(before, iobmd, oracle) == []


def test_what_was_handed_over_survives_its_maker(guest, iobmd):
    """The peer makes a buffer, the agent takes it, the peer dies."""
    live = iobmd.info().live
    peer = IOKit(guest.peer)
    buffer = peer.withOptions(k.kIODirectionInOut, 2 * PAGE)
    assert buffer.writeBytes(0, b"inherited") == 9
    fd = guest.take(buffer.fd, guest.peer)
    guest.peer.kill()
    layout = iobmd.layouts.struct("iobmd_transfer")
    at = layout.fields["bytes"].offset
    reply = iobmd.ioctl(fd, "READ_BYTES", layout.pack(length=9), {at: 9})
    assert reply.data[at] == b"inherited"
    assert iobmd.info().live == live + 1
    guest.close(fd)
    assert iobmd.info().live == live


def test_both_processes_see_one_buffer(guest, iobmd):
    """A mapping in each; what one writes the other reads (clause E15)."""
    buffer = iobmd.withOptions(k.kIODirectionInOut | k.kIOMemoryKernelUserShared, PAGE)
    ours = buffer.createMappingInTask(Task.CURRENT, 0, k.kIOMapAnywhere)
    theirs = buffer.createMappingInTask(guest.peer, 0, k.kIOMapAnywhere)
    theirs.write(100, b"from the peer")
    assert ours.read(100, 13) == b"from the peer"
    buffer.release()
    ours.write(0, b"still here")
    assert theirs.read(0, 10) == b"still here"
    guest.peer.kill()
    assert ours.read(0, 10) == b"still here"


def test_a_race_for_one_descriptor(guest, iobmd, oracle):
    """All workers of the agent at once: prepare, complete, read, close, on the same file."""
    before = Stock(iobmd, oracle)
    layout = iobmd.layouts.struct("iobmd_wiring")
    commands = iobmd.layouts.enum("iobmd_ioctl")
    for _ in range(30):
        made = iobmd.withOptions(k.kIODirectionInOut | k.kIOMemoryPageable | k.kIOMemoryThreadSafe, 8 * PAGE)
        fd = made.fd
        sent = [
            guest.start_ioctl(fd, commands[f"IOBMD_IOC_{name}"], layout.pack())
            for name in ("PREPARE", "COMPLETE") * 20
        ]
        closing = guest.link.start(Nr.CLOSE, fd)
        for one in sent:
            try:
                assert layout.unpack(one.wait(60).arg)["code"] == 0
            except GuestOSError as error:
                assert error.errno == errno.EBADF  # noqa: PT017 - or it succeeded
        assert closing.wait(60).value == 0
        iobmd.forget(made)
    assert still_lost(before, iobmd, oracle) == []
