# SPDX-License-Identifier: MIT
"""SSH into a real guest: commands, files, keys, sessions that break, guests that die."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import time
from dataclasses import replace

import pytest

from harness.errors import BadInput, GuestFailure
from harness.link import Guest, GuestOSError, ProgramNotStarted
from harness.link.guest import SSH_PORT_NAME
from harness.link.ssh import (
    Access,
    ClientKeyRefused,
    CommandFailed,
    CommandTimedOut,
    HostKeyMismatch,
    Keys,
    Ssh,
    SshFailure,
)
from harness.vm import GuestPanicked, QemuDied, SnapshotStore


@pytest.fixture
def alone(guest):
    """A guest for a test that does not leave it as it was."""
    options = replace(guest.options, peer=False)
    with Guest(guest.image, options) as other:
        yield other


def with_keys(guest, keys):
    access = Access(guest, lambda: guest.machine.port(SSH_PORT_NAME), guest.machine.check)
    return Ssh(access, lambda: guest.image.ssh_payload(None), lambda: keys)


# -- commands -----------------------------------------------------------------------------------------------


def test_status_output_and_complaints(ssh):
    assert ssh.run("true") == (0, b"", b"")
    assert ssh.run("false").status == 1
    assert ssh.run("exit 42").status == 42
    assert ssh.run("echo out; echo complaint >&2; exit 3") == (3, b"out\n", b"complaint\n")
    assert ssh.run("kill -9 $$").status == 128 + 9
    assert ssh.run("/no/such/program").status == 127
    assert ssh.run(["echo", "a b", "$HOME", "'"]).text == "a b $HOME '"


def test_the_guest_is_the_guest(ssh, guest, machine):
    assert ssh.run("uname -r", check=True).text == guest.hello.release
    assert ssh.run("id -u; pwd").text == "0\n/root"
    assert ssh.run("cat /proc/net/dev | wc -l").text in ("3", "4")  # two lines of heading, and lo: no network
    assert machine.ssh is guest.ssh is ssh


def test_a_megabyte_of_any_bytes(ssh, guest):
    data = os.urandom(1 << 20)
    guest.write_file("/tmp/bytes", data)
    assert ssh.run("cat /tmp/bytes; cat /tmp/bytes >&2") == (0, data, data)
    echoed = ssh.run("cat", stdin=data)
    assert echoed.stdout == data
    assert ssh.run("true", stdin=data).status == 0  # which reads none of it


def test_a_failure_is_an_error_when_asked_for(ssh):
    with pytest.raises(CommandFailed, match="status 2") as caught:
        ssh.run("echo why >&2; exit 2", check=True)
    assert caught.value.evidence == ("why",)
    assert caught.value.tried == "echo why >&2; exit 2"
    assert ssh.run("exit 0", check=True).status == 0


def test_a_command_that_does_not_end(ssh):
    before = time.monotonic()
    with pytest.raises(CommandTimedOut) as caught:
        ssh.run("echo started; exec sleep 1000", timeout=1.0)
    assert 1 <= time.monotonic() - before < 3
    assert caught.value.stdout == b"started\n"
    deadline = time.monotonic() + 5
    while "sleep 1000" in ssh.run("ps").text:  # its shell was killed, and the session goes on
        assert time.monotonic() < deadline


def test_a_command_that_kills_its_parent(ssh):
    with pytest.raises(SshFailure, match="kill -9"):
        ssh.run("kill -9 $PPID; sleep 100")
    assert ssh.run("true").status == 0


def test_a_command_too_long_for_the_server(ssh):
    assert ssh.run("echo " + "x" * 8500).text == "x" * 8500
    with pytest.raises(BadInput, match="longer than"):
        ssh.run("echo " + "x" * 9000)
    assert ssh.run("sh -s", stdin=b"echo " + b"x" * 100_000).text == "x" * 100_000


def test_a_background_process_is_not_waited_for(ssh):
    before = time.monotonic()
    assert ssh.run("sleep 7 & echo $!", timeout=20).status == 0
    assert time.monotonic() - before < 5


def test_threads_run_commands_at_once(ssh):
    """Commands end while others begin, which Debian 12's dropbear does not survive by itself."""
    results = {}

    def run(number):
        results[number] = [ssh.run(f"echo {number}.{turn}; exit {number}") for turn in range(5)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    before = ssh.transport
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(8):
        assert results[number] == [(number, f"{number}.{turn}\n".encode(), b"") for turn in range(5)]
    assert ssh.transport is before


# -- files --------------------------------------------------------------------------------------------------


def test_five_megabytes_there_and_back(ssh, tmp_path):
    data = os.urandom(5 << 20)
    local = tmp_path / "local"
    local.write_bytes(data)
    local.chmod(0o751)
    heard = []
    ssh.put(local, "/tmp/there", progress=lambda done, total: heard.append((done, total)))
    assert ssh.run("sha256sum /tmp/there", check=True).text.split()[0] == hashlib.sha256(data).hexdigest()
    assert ssh.run("stat -c %a /tmp/there").text == "751"
    assert heard[-1] == (len(data), len(data))
    assert len(heard) > 10
    ssh.get("/tmp/there", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    ssh.run("rm /tmp/there")


def test_a_program_that_was_put_runs(ssh, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho $1 from $(uname)\n")
    script.chmod(0o755)
    ssh.put(script, "/tmp/script")
    assert ssh.run(["/tmp/script", "hello"]).text == "hello from Linux"


def test_small_and_empty_files_and_folders_for_a_target(ssh, tmp_path):
    for content in (b"", b"x"):
        (tmp_path / "a").write_bytes(content)
        ssh.put(tmp_path / "a", "/tmp/a")
        ssh.get("/tmp/a", tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == content
    (tmp_path / "folder").mkdir()
    ssh.get("/tmp/a", tmp_path / "folder")
    assert (tmp_path / "folder/a").read_bytes() == b"x"


def test_files_that_cannot_be_copied(ssh, tmp_path):
    with pytest.raises(BadInput, match="cannot read"):
        ssh.put(tmp_path / "none", "/tmp/x")
    with pytest.raises(BadInput, match="cannot read"):
        ssh.put(tmp_path, "/tmp/x")
    with pytest.raises(GuestOSError) as caught:
        ssh.get("/tmp/none", tmp_path / "x")
    assert caught.value.errno == errno.ENOENT
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(GuestOSError):
        ssh.put(tmp_path / "x", "/no/such/folder/x")
    with pytest.raises(BadInput, match="cannot write"):
        ssh.get("/etc/passwd", tmp_path / "no" / "such")
    ssh.put(tmp_path / "x", "/tmp/x")  # the session has survived all of it


# -- sessions -----------------------------------------------------------------------------------------------


def test_twenty_sessions_one_after_the_other(ssh):
    seen = set()
    for turn in range(20):
        ssh.close()
        assert ssh.run(f"echo {turn}").text == str(turn)
        seen.add(ssh.transport.get_remote_server_key().get_base64())
    assert len(seen) == 20  # every session has keys of its own
    assert ssh.run("ps | grep -c '[d]ropbear -i'").text in ("1", "2")  # this session's, and its child for ps


def wait_for_file(guest, path):
    """Until a command has made it, which is how it says that it runs."""
    deadline = time.monotonic() + 30
    while True:
        try:
            guest.read_file(path)
        except GuestOSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            return


def test_a_session_that_is_cut_does_not_poison_the_next(ssh, guest):
    for turn in range(5):
        failures, mark = [], f"/tmp/floods.{turn}"

        def flood(failures=failures, mark=mark):
            try:
                ssh.run(f"touch {mark}; exec cat /dev/zero", stdin=bytes(1 << 22), timeout=60)
            except SshFailure as failure:
                failures.append(failure)

        thread = threading.Thread(target=flood)
        before = ssh.transport
        thread.start()
        wait_for_file(guest, mark)
        time.sleep(0.15)  # for some of the flood; how much makes no difference
        ssh.close()
        assert ssh.run("echo again").text == "again"
        thread.join(20)
        assert failures
        assert ssh.transport is not before
    ssh.run("killall cat; rm /tmp/floods.*")


def test_bytes_of_nobody_on_the_port(ssh, guest):
    ssh.run("true")
    ssh.close()
    port = guest.machine.port(SSH_PORT_NAME)
    port.setblocking(True)
    port.sendall(b"SSH-2.0-nobody\r\n" + os.urandom(100_000))
    assert ssh.run("echo clean").text == "clean"


def test_a_server_that_dies_is_named_and_replaced(ssh):
    before = time.monotonic()
    with pytest.raises(SshFailure):
        ssh.run("killall -9 dropbear; sleep 100")
    assert time.monotonic() - before < 5
    assert ssh.run("echo alive").text == "alive"


def test_another_host_key_is_refused(guest, ssh):
    keys = replace(Keys.fresh(), pinned=Keys.fresh().pinned)
    with pytest.raises(HostKeyMismatch, match="another key"):
        with_keys(guest, keys).run("touch /tmp/reached")
    assert ssh.run("ls /tmp/reached").status == 1


def test_another_client_key_is_refused(guest, ssh):
    keys = replace(Keys.fresh(), authorized=Keys.fresh().authorized)
    with pytest.raises(ClientKeyRefused):
        with_keys(guest, keys).run("touch /tmp/reached")
    assert ssh.run("ls /tmp/reached").status == 1


def test_the_port_costs_nothing_until_somebody_asks(alone):
    assert "dropbear" not in alone.read_file("/proc/1/task/1/children").decode()
    with pytest.raises(GuestOSError):
        alone.read_file("/usr/sbin/dropbear")
    assert alone.ssh.run("true").status == 0
    assert alone.read_file("/usr/sbin/dropbear")[:4] == b"\x7fELF"


# -- guests that are started again --------------------------------------------------------------------------


@pytest.fixture
def rewindable(guest):
    with Guest(guest.image, replace(guest.options), SnapshotStore.default()) as other:
        yield other


def test_the_next_use_after_a_restore_makes_a_session(rewindable):
    ssh = rewindable.ssh
    for turn in range(3):
        assert ssh.run("ls /tmp/mark").status == 1
        assert ssh.run(f"echo {turn} > /tmp/mark; cat /tmp/mark").text == str(turn)
        before = ssh.transport
        rewindable.restore()
        assert rewindable.ssh is rewindable.machine.ssh is ssh
        assert ssh.transport is not before
    ssh.run("true")


def test_a_restore_under_a_running_command_and_after_a_death(rewindable):
    ssh = rewindable.ssh
    ssh.run("true")
    failures = []

    def flood():
        try:
            ssh.run("touch /tmp/floods; exec cat /dev/zero", timeout=60)
        except GuestFailure as failure:
            failures.append(failure)

    thread = threading.Thread(target=flood)
    thread.start()
    wait_for_file(rewindable, "/tmp/floods")
    time.sleep(0.2)  # likewise
    rewindable.restore()
    assert ssh.run("ps | grep -c '[c]at'").text == "0"
    thread.join(20)
    assert len(failures) == 1
    rewindable.machine.qmp.execute("quit")
    with pytest.raises(QemuDied):
        ssh.run("sleep 10")
    rewindable.restore()
    assert ssh.run("echo alive").text == "alive"


# -- guests that die ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["command", "transfer"])
def test_a_panic_is_a_panic_within_two_seconds(alone, tmp_path, use):
    alone.ssh.run("true")
    local = tmp_path / "local"
    local.write_bytes(bytes(200 << 20))
    started = threading.Event()

    def panic():
        started.wait(30)
        with contextlib.suppress(Exception):
            alone.write_file("/proc/sysrq-trigger", b"c")

    thread = threading.Thread(target=panic)
    thread.start()
    uses = {
        "command": lambda: alone.ssh.run("cat", stdin=bytes(200 << 20), timeout=60),
        "transfer": lambda: alone.ssh.put(local, "/tmp/x", progress=lambda *_: started.set(), timeout=60),
    }
    if use == "command":
        threading.Timer(0.3, started.set).start()
    with pytest.raises(GuestPanicked, match="sysrq"):
        uses[use]()
    ended = time.monotonic()
    thread.join(20)
    assert started.is_set()
    with pytest.raises(GuestPanicked):
        alone.ssh.run("true")
    assert time.monotonic() - ended < 2


def test_the_time_from_a_panic_to_its_name(alone):
    ssh = alone.ssh
    ssh.run("true")
    before = time.monotonic()
    with pytest.raises(GuestPanicked):
        ssh.run("echo c > /proc/sysrq-trigger; sleep 100")
    assert time.monotonic() - before < 2


def test_a_guest_that_powers_off(alone):
    with pytest.raises(QemuDied, match="ended"):
        alone.ssh.run("poweroff -f; sleep 100")


# -- programs -----------------------------------------------------------------------------------------------


def test_programs_of_the_guest_without_a_port(guest, ssh):
    ssh.run("true")
    program = guest.spawn(["/bin/sh", "-c", "echo $PATH; exit 5"], log="/tmp/log")
    assert program.wait(10) == 5
    assert guest.read_file("/tmp/log") == b"/usr/sbin:/usr/bin:/sbin:/bin\n"
    with pytest.raises(ProgramNotStarted):
        guest.spawn(["/no/such"])
    mark = guest.machine.console.mark()
    guest.spawn(["/bin/echo", "on the console"]).wait(10)
    guest.machine.console.wait_for("on the console", 10, since=mark)


def test_a_machine_without_an_agent_has_no_shell(guest):
    from harness.vm import Machine

    with pytest.raises(BadInput, match="no agent"):
        _ = Machine(guest.machine.spec).ssh
