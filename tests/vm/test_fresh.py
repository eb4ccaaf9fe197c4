# SPDX-License-Identifier: MIT
"""Nothing a test does to its guest reaches the next one: poisoned guests, looked at from inside and outside.

Each test here runs a session of its own over ``POISONED``, a file in which every test first looks whether its
guest is as the first one found it, and then poisons it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.images import cache_root

# What is looked at stands in `look`; @GUEST@ is the fixture's name.  Poisons that end in death are marked.
POISONED = """
import os
import signal

import pytest

from harness.errors import GuestFailure
from harness.iokit import IOKit, kIOMapWriteCombineCache
from harness.link import GuestOSError, Nr, Out

MIB = 1 << 20
PWT = 1 << 3
CLEAN = {}
RESTORES = []
LEFT = []  # keeps what was leaked from being released by Python's own tidiness


def look(guest, oracle, iobmd):
    with oracle.frozen() as view:
        odd = len(view.direct_map_anomalies())
        low = view.read(0x1000, 16)
    fd = guest.open("/dev/null")
    guest.close(fd)
    return {
        "descriptors alive, by the module": iobmd.info().live,
        "pages of another type, from outside": odd,
        "memory, from outside": low,
        "the agent's next file": fd,
        "modules to load": guest.read_file("/etc/iobmd/modules"),
        "swappiness": guest.read_file("/proc/sys/vm/swappiness"),
        "mounts and files": guest.read_file("/proc/mounts") + names(guest, "/tmp"),
        "children": guest.read_file("/proc/1/task/1/children"),
        "loaded": [line.split()[0] for line in guest.read_file("/proc/modules").splitlines()],
        "this boot": guest.hello.boot_nonce,
    }


def names(guest, folder):
    fd = guest.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        result = guest.syscall(217, fd, Out(4096), 4096, what="getdents64")  # arch/x86 syscall_64.tbl
    finally:
        guest.close(fd)
    return result.outputs[0][: result.value].replace(b"\\0", b"")


def descriptors(guest, oracle):
    LEFT.append(IOKit(guest))
    LEFT.append(LEFT[-1].withOptions(kIOMapWriteCombineCache, 64 * 1024))


def page_type(guest, oracle):
    with oracle.frozen() as view:
        leaf = view.walk(view.direct_map.base + 64 * MIB)
        table = view.address_spaces[0]
        for level in range(view.levels, leaf.level - 1, -1):
            slot = table + 8 * (leaf.va >> (12 + 9 * (level - 1)) & 511)
            table = int.from_bytes(view.read(slot, 8), "little") & 0x000FFFFFFFFFF000
        view.write(slot, (leaf.entry | PWT).to_bytes(8, "little"))


def memory(guest, oracle):
    guest.machine.ram.write(0x1000, os.urandom(16))


def open_files(guest, oracle):
    for _ in range(3):
        guest.open("/dev/null")


def files(guest, oracle):
    guest.write_file("/tmp/poison", b"of another test")
    guest.write_file("/etc/iobmd/modules", b"")


def sysctl(guest, oracle):
    guest.write_file("/proc/sys/vm/swappiness", b"7")


def peer(guest, oracle):
    assert guest.peer.alive


def killed_peer(guest, oracle):
    guest.peer.kill()
    assert guest.peer.alive


def module(guest, oracle):
    guest.unload_module("iobmd")


def panic(guest, oracle):
    with pytest.raises(GuestFailure, match="panicked"):
        guest.write_file("/proc/sysrq-trigger", b"c")


def quit_qemu(guest, oracle):
    guest.machine.qmp.execute("quit")


def killed_qemu(guest, oracle):
    os.kill(guest.machine.pid, signal.SIGKILL)


def stopped(guest, oracle):
    guest.machine.qmp.execute("stop")


def stuck(guest, oracle):
    pipe = guest.syscall(Nr.PIPE, Out(8), what="pipe").outputs[0]
    reader = int.from_bytes(pipe[:4], "little")
    for _ in range(guest.hello.workers + 1):
        guest.link.start(Nr.READ, reader, Out(1), 1)
    guest.link.ping()


def shows(guest, oracle, clean):
    try:
        with IOKit(guest) as iobmd:
            return look(guest, oracle, iobmd) != clean
    except GuestOSError:  # without the module there is no session
        return True


TRACES = [descriptors, page_type, memory, open_files, files, sysctl, peer, killed_peer, module]
WANTED = pytest.mark.expect_oops("sysrq triggered crash")
DEATHS = [pytest.param(panic, marks=WANTED), quit_qemu, killed_qemu]
SILENCES = [stopped, stuck]


@pytest.mark.parametrize("poison", [*TRACES, *DEATHS, *SILENCES], ids=lambda poison: poison.__name__)
def test_as_clean_as_ever(@GUEST@, iobmd, oracle, poison):
    guest = @GUEST@
    found = look(guest, oracle, iobmd)
    assert found == (CLEAN or found)
    CLEAN.update(found)
    assert guest.hello.restore_nonce not in RESTORES
    RESTORES.append(guest.hello.restore_nonce)
    iobmd.close()  # a module in use cannot be unloaded
    poison(guest, oracle)
    assert poison not in TRACES or shows(guest, oracle, found)


def test_the_last_one_is_clean_too(@GUEST@, iobmd, oracle):
    assert look(@GUEST@, oracle, iobmd) == CLEAN
"""


def command_line(pytestconfig, *argv):
    """A pytest with this session's kernel."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error",
            "--kernel", pytestconfig.option.kernel, "--accel", pytestconfig.option.accel, *argv]  # fmt: skip


@pytest.fixture
def session(tmp_path, pytestconfig):
    """Run a test file in a pytest of its own, with this session's kernel; return how it went."""

    def run(text, *argv, conftest=""):
        (tmp_path / "test_mine.py").write_text(text)
        (tmp_path / "conftest.py").write_text(conftest)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run(
            command_line(pytestconfig, *argv), cwd=tmp_path, env={**environment, "NO_COLOR": "1"},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        print(done.stdout, done.stderr)
        return done

    return run


OLDER = '''
import pytest

from harness.iokit import IOKit


@pytest.fixture(scope="module")
def long(guest):
    """Lives over restores, and is closed when its guest is another one for long."""
    with IOKit(guest) as session, IOKit(guest.peer) as other:
        session.withOptions(3, 4096)
        other.withOptions(3, 4096)
        yield session


def test_makes(long, iobmd, guest):
    buf = iobmd.withOptions(3, 65536)
    buf.createMappingInTask(guest.peer, 0, 1)
    assert iobmd.info().live == 3


def test_is_restored_below_them(long, iobmd, guest):
    assert iobmd.info().live == 0
    iobmd.withOptions(3, 65536).createMappingInTask(guest.peer, 0, 1)
    guest.restore()
    with IOKit(guest) as new:
        assert new.info().live == 0
        assert guest.peer.alive


def test_ends(iobmd):
    assert iobmd.info().live == 0
'''


def test_sessions_with_a_guest_that_is_no_more_end_in_silence(session):
    done = session(OLDER, "--fresh")
    assert done.returncode == 0
    assert "3 passed" in done.stdout


def test_workers_share_one_snapshot(session, tmp_path_factory, monkeypatch):
    """One boots and makes it, the other waits for that."""
    cache = tmp_path_factory.mktemp("cache")
    for entry in cache_root().iterdir():
        if entry.name != "snapshots":
            (cache / entry.name).symlink_to(entry)
    monkeypatch.setenv("IOBMD_CACHE", str(cache))
    done = session(SHARED, "-n", "2")
    assert done.returncode == 0
    ways = re.findall(r"^iobmd: \[gw\d\] 6\..*; (booted|restored)", done.stdout, re.MULTILINE)
    assert sorted(ways) == ["booted", "restored"]
    assert len(list((cache / "snapshots").iterdir())) == 1


SHARED = "import pytest\n@pytest.mark.parametrize('n', range(8))\ndef test_it(guest, n): guest.link.ping()"
BACKWARDS = "def pytest_collection_modifyitems(items): items.reverse()"


@pytest.mark.parametrize(
    ("fixture", "argv"), [("fresh_guest", ()), ("guest", ("--fresh",))], ids=["fresh_guest", "--fresh"]
)
def test_no_poison_reaches_the_next_test(session, fixture, argv):
    done = session(POISONED.replace("@GUEST@", fixture), *argv)
    assert done.returncode == 0
    assert "15 passed" in done.stdout
    # Deaths need a new QEMU; so does a guest whose clock ran on too far, as it does on a busy host.
    found = re.search(r"restored 14 times: (\d+) in place \(.*, (\d+) in a new QEMU \(", done.stdout)
    in_place, anew = (int(number) for number in found.groups())
    assert in_place + anew == 14
    assert anew >= 3
    assert in_place >= 3


def test_the_order_makes_no_difference(session):
    text = POISONED.replace("@GUEST@", "guest").replace("def test_the_last_one", "def no_test")
    done = session(text, "--fresh", conftest=BACKWARDS)
    assert done.returncode == 0
    assert "14 passed" in done.stdout


def test_without_a_restore_every_test_after_a_poison_notices(session):
    """The proof that the tests above can fail; that each poison shows, they assert themselves."""
    text = POISONED.replace("@GUEST@", "guest")
    text = text.replace("DEATHS = [", "DEATHS = [] and [").replace("SILENCES = [", "SILENCES = [] and [")
    done = session(text)
    assert done.returncode == 1
    assert re.search(r"9 failed, 1 passed", done.stdout)


def test_two_workers_have_clean_guests_side_by_side(session):
    done = session(POISONED.replace("@GUEST@", "guest"), "--fresh", "-n", "2")
    assert done.returncode == 0
    assert "15 passed" in done.stdout
    assert re.findall(r"^iobmd: \[(gw\d)\] 6\.\S+ .*; restored \d+ times", done.stdout, re.MULTILINE) == [
        "gw0",
        "gw1",
    ]


SPEAKS = """
import os

import pytest


@pytest.mark.parametrize("n", range(6))
def test_speaks(guest, n):
    guest.write_file("/dev/kmsg", f"<3>this is number {n};\\n".encode())
    pytest.fail(f"{os.environ['PYTEST_XDIST_WORKER']} {guest.machine.workdir}")
"""


def test_two_workers_keep_their_own_evidence(session, tmp_path):
    assert "6 failed" in session(SPEAKS, "-n", "2").stdout
    said, where = {}, {}
    for folder in (tmp_path / "results/latest").iterdir():
        worker, workdir = (folder / "error.txt").read_text().split()
        numbers = set(re.findall(r"this is number (\d);", (folder / "console.log").read_text()))
        assert re.search(r"\[(\d)\]", folder.name)[1] in numbers
        said.setdefault(worker, set()).update(numbers)
        where.setdefault(worker, set()).add(workdir)
    assert set(said) == {"gw0", "gw1"}
    assert sorted(said["gw0"] | said["gw1"]) == sorted("012345")
    assert not said["gw0"] & said["gw1"]
    assert len(where["gw0"]) == len(where["gw1"]) == 1
    assert where["gw0"] != where["gw1"]


SLEEPS = """
import os
import time
from pathlib import Path

import pytest


@pytest.mark.parametrize("n", range(2))
def test_sleeps(guest, fresh_guest, n):
    pids = (os.getpid(), guest.machine.pid, fresh_guest.machine.pid)
    Path(f"{n}.new").write_text(" ".join(map(str, pids)))
    Path(f"{n}.new").rename(f"{n}.pids")
    time.sleep(600)
"""


def test_a_killed_session_leaves_no_worker_and_no_guest(tmp_path, pytestconfig):
    (tmp_path / "test_mine.py").write_text(SLEEPS)
    argv = command_line(pytestconfig, "-n", "2")
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: len(list(tmp_path.glob("*.pids"))) == 2 or process.poll() is not None, 120)
        finally:
            process.kill()
    pids = [int(pid) for path in tmp_path.glob("*.pids") for pid in path.read_text().split()]
    assert len(set(pids)) == 6
    wait_until(lambda: not any(is_running(pid) for pid in pids), 3)


def wait_until(true, seconds):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


DEADLY = """
import os
import signal

import pytest


def test_kills(guest):
    guest.write_file("/tmp/mine", b"before")
    os.kill(guest.machine.pid, signal.SIGKILL)


def test_finds_a_living_one(guest, iobmd):
    assert guest.generation == 1
    assert iobmd.info().live == 0


def test_silences(guest):
    guest.machine.qmp.execute("stop")


def test_finds_one_that_speaks(oracle, iobmd):
    assert iobmd.info().live == 0


def test_opens(guest):
    guest.mine = guest.open("/dev/null")


def test_is_left_alone(guest):
    guest.close(guest.mine)
"""

IMPATIENT = "from harness.pytest_plugin import watch\nwatch.ALIVE_SECONDS = 3.0"


def test_a_dead_guest_fails_nobody_else(session):
    done = session(DEADLY, conftest=IMPATIENT)
    assert done.returncode == 0
    assert "6 passed" in done.stdout
    deaths = re.findall(r"^iobmd: the session guest died in test_mine.py::(\w+): .* for test_mine.py::(\w+)$",
                        done.stdout, re.MULTILINE)  # fmt: skip
    assert deaths == [
        ("test_kills", "test_finds_a_living_one"), ("test_silences", "test_finds_one_that_speaks"),
    ]  # fmt: skip


UNTOUCHED = """
import pytest

from harness.errors import GuestFailure

SEEN = {}


def test_a(guest, iobmd):
    guest.write_file("/tmp/mine", b"kept")
    SEEN.update(fd=guest.open("/tmp/mine"), nonce=guest.hello.boot_nonce, pid=guest.machine.pid)


@pytest.mark.expect_oops("sysrq triggered crash")
def test_b(fresh_machine, fresh_guest, iobmd, oracle):
    assert fresh_machine.pid != SEEN["pid"]
    assert iobmd.process is fresh_guest
    fresh_guest.write_file("/tmp/mine", b"of the fresh one")
    fresh_machine.ram.write(0x1000, b"poison")
    with pytest.raises(GuestFailure):
        fresh_guest.write_file("/proc/sysrq-trigger", b"c")


def test_c(guest, iobmd, machine):
    assert guest.generation == 0
    assert machine.pid == SEEN["pid"]
    assert guest.hello.boot_nonce == SEEN["nonce"]
    assert guest.read_file(f"/proc/self/fd/{SEEN['fd']}") == b"kept"
    assert machine.ram.read(0x1000, 6) != b"poison"
"""


def test_a_fresh_guest_leaves_the_sessions_one_as_it_was(session):
    done = session(UNTOUCHED)
    assert done.returncode == 0
    assert "3 passed" in done.stdout
