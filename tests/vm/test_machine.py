# SPDX-License-Identifier: MIT
"""The machine room against a real QEMU and a real kernel."""

import contextlib
import dataclasses
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from harness.errors import BadInput, HostLacks
from harness.images import GuestImage
from harness.link import Link
from harness.vm import (
    READY_LINE,
    Accel,
    GuestPanicked,
    Machine,
    MachineSpec,
    MachineState,
    QemuDied,
    QemuRefused,
    QmpRefused,
    choose_accelerator,
    ram_ranges,
)
from harness.vm.accel import KVM_DEVICE
from harness.vm.ram import MIB

BOOT_SECONDS = 60


@pytest.fixture
def spec(guest_image: GuestImage) -> MachineSpec:
    return MachineSpec(
        kernel=guest_image.kernel.boot_image,
        initrd=guest_image.initramfs,
        cmdline=("console=ttyS0", "panic=-1", "no_timer_check", "unknown_nmi_panic"),
        memory_mib=256,
        accel=Accel.TCG,
    )


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Private folders of this test's machines; whatever is left over is then this test's."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    def held() -> tuple[set[str], set[str]]:
        links = set()
        for fd in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                links.add(f"{fd.name} {fd.readlink()}")
        threads = {thread.name for thread in threading.enumerate()}
        return links, threads - {"iobmd-spawner"}

    before = held()
    yield
    fds, threads = held()
    assert {link for link in fds - before[0] if "memfd:iobmd" in link or "socket:" in link} == set()
    assert threads - before[1] == set()


def booted(machine: Machine) -> Machine:
    machine.console.wait_for(READY_LINE, BOOT_SECONDS)
    return machine


def test_a_machine_boots_talks_and_leaves_nothing(
    spec: MachineSpec, guest_image: GuestImage, runtime: Path
) -> None:
    machine = Machine(spec)
    assert machine.state is MachineState.NEW
    with pytest.raises(BadInput, match="not started"):
        machine.check()
    with machine:
        booted(machine)
        assert machine.state is MachineState.RUNNING
        assert machine.accelerator.name == "tcg"
        assert machine.qmp.execute("query-kvm")["enabled"] is False
        assert re.match(r"QEMU \d+\.\d+\S*, q35, max, 1 CPU, 256 MiB, tcg \(asked for\)", machine.describe())
        link = Link(machine.port("org.iobmd.link"), guest_image.link_layouts, machine.check)
        assert link.ping(b"payload", timeout=10) == b"payload"
        with pytest.raises(BadInput, match=re.escape("ports: org.iobmd.link")):
            machine.port("nope")
        assert "Linux version" in machine.console.text()
        assert (machine.workdir / "console.log").read_bytes().startswith(machine.console.raw())
        assert machine.console.panic is None
        pid, workdir = machine.pid, machine.workdir
        assert f"iobmd-vm-{os.getpid()}-" in workdir.name
    assert machine.state is MachineState.CLOSED
    assert not Path(f"/proc/{pid}").exists()
    assert list(runtime.iterdir()) == []
    assert READY_LINE in machine.console.text()
    with pytest.raises(BadInput, match="closed"):
        machine.check()


def test_a_qemu_takes_the_line_for_doing_it_by_hand(spec: MachineSpec) -> None:
    with Machine(spec) as machine:
        line = machine.repro_command()
    with subprocess.Popen(
        ["/bin/sh", "-c", f"exec {line}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as qemu:
        assert qemu.stdout is not None
        try:
            for text in qemu.stdout:
                if b"Linux version" in text:
                    break
            else:
                pytest.fail(f"it ended: {line}")
        finally:
            qemu.kill()


def test_captures_are_small_quick_repeatable_and_leave_no_trace(
    spec: MachineSpec, guest_image: GuestImage
) -> None:
    with Machine(spec) as machine:
        link = Link(booted(machine).port("org.iobmd.link"), guest_image.link_layouts, machine.check)
        with pytest.raises(BadInput, match="stands still"):
            machine.device_state()
        seconds, streams = [], set()
        for _ in range(20):
            start = time.monotonic()
            with machine.stopped():
                assert machine.state is MachineState.STOPPED
                stream = machine.device_state()
                with machine.stopped():
                    assert machine.device_state() is stream
                assert machine.state is MachineState.STOPPED
            seconds.append(time.monotonic() - start)
            assert stream.startswith(b"QEVM")
            streams.add(stream)
            assert len(stream) < MIB  # 256 MiB of RAM are not in it
            assert link.ping(b"alive", timeout=10) == b"alive"
        assert len(streams) == 20, "a stop was shown the state of an earlier one"
        enabled = [each for each in machine.qmp.execute("query-migrate-capabilities") if each["state"]]
        assert enabled == []
        assert machine.state is MachineState.RUNNING
        assert min(seconds) < 0.1, seconds  # what others on this host compute meanwhile is not the capture's
        names = [event.name for event in machine.qmp.events("STOP", "RESUME")]
        assert names == ["STOP", "RESUME"] * 20


def test_a_device_that_cannot_be_captured_is_named_and_the_guest_goes_on(
    spec: MachineSpec, guest_image: GuestImage
) -> None:
    with Machine(dataclasses.replace(spec, devices=("nvme,serial=x",))) as machine:
        link = Link(booted(machine).port("org.iobmd.link"), guest_image.link_layouts, machine.check)
        for _ in range(2):
            with pytest.raises(QmpRefused, match=r"non-migratable device.*nvme"), machine.stopped():
                machine.device_state()
        assert link.ping(b"alive", timeout=10) == b"alive"


def test_an_error_inside_of_a_stop_lets_the_guest_go_on(spec: MachineSpec) -> None:
    with Machine(spec) as machine:
        with pytest.raises(ZeroDivisionError), machine.stopped(), machine.stopped():
            raise ZeroDivisionError
        assert machine.qmp.execute("query-status")["running"] is True
        booted(machine)


@pytest.mark.parametrize(("kind", "mib"), [("q35", 2815), ("q35", 2816), ("pc", 3583), ("pc", 3584)], ids=str)
def test_ram_lies_where_qemu_says(spec: MachineSpec, kind: str, mib: int, tmp_path: Path) -> None:
    with Machine(dataclasses.replace(spec, machine=kind, memory_mib=mib)) as machine, machine.stopped():
        assert machine.ram.ranges == ram_ranges(kind, mib * MIB)
        tree = machine.qmp.hmp("info mtree -f")
        for start, length in machine.ram.ranges:
            assert f"-{start + length - 1:016x} (prio 0, ram): ram" in tree
            for gpa in (start + MIB, start + length // 2, start + length - 16):
                machine.ram.write(gpa, gpa.to_bytes(8, "little") * 2)
                out = tmp_path / "page"
                machine.qmp.execute("pmemsave", val=gpa, size=16, filename=str(out))
                assert out.read_bytes() == gpa.to_bytes(8, "little") * 2


def test_a_panic_is_told_at_once_with_its_trace(spec: MachineSpec) -> None:
    began: list[float] = []

    def panics() -> None:
        with Machine(spec) as machine:
            booted(machine).qmp.execute("inject-nmi")
            began.append(time.monotonic())
            machine.console.wait_for("this never comes", 60)

    with pytest.raises(GuestPanicked) as caught:
        panics()
    assert time.monotonic() - began[0] < 5
    assert "Kernel panic - not syncing" in caught.value.panic
    assert caught.value.panic in caught.value.console_tail[:5]
    assert any("Call Trace" in line for line in caught.value.console_tail)
    assert caught.value.workdir is not None
    assert "Kernel panic" in (caught.value.workdir / "console.log").read_text(errors="replace")


def test_a_reset_and_a_kill_are_told_apart(spec: MachineSpec) -> None:
    def resets() -> None:
        with Machine(spec) as machine:
            machine.qmp.execute("system_reset")
            machine.console.wait_for("this never comes", 60)

    def is_killed() -> None:
        with Machine(spec) as machine:
            os.kill(machine.pid, signal.SIGKILL)
            machine.qmp.execute("query-status")

    with pytest.raises(QemuDied, match="host-qmp-system-reset") as reset:
        resets()
    assert reset.value.status == 0
    with pytest.raises(QemuDied) as killed:
        is_killed()
    assert killed.value.signal_name == "SIGKILL"
    assert killed.value.argv[0].endswith("qemu-system-x86_64")
    assert "memory-backend-memfd" in killed.value.scene.repro


def test_a_dead_machine_says_so_wherever_it_is_asked(spec: MachineSpec) -> None:
    with Machine(spec) as machine:
        os.kill(machine.pid, signal.SIGKILL)
        machine.console.wait_end(5)
        for use in (machine.check, machine.stopped().__enter__, partial(machine.console.wait_for, "x", 5)):
            with pytest.raises(QemuDied):
                use()
        assert machine.state is MachineState.DEAD


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"devices": ("warp-drive",)}, "'warp-drive' is not a valid device", id="device"),
        pytest.param({"cpu": "z80"}, "unable to find CPU model 'z80'", id="cpu"),
    ],
)
def test_what_qemu_refuses_comes_with_its_words(
    spec: MachineSpec, change: dict[str, object], words: str, runtime: Path
) -> None:
    with pytest.raises(QemuRefused, match=words) as caught, Machine(dataclasses.replace(spec, **change)):  # type: ignore[arg-type]
        pytest.fail("it started")
    assert caught.value.exit_code == 2
    assert caught.value.workdir is not None
    assert words in (caught.value.workdir / "qemu.log").read_text()
    assert caught.value.workdir.parent == runtime


def test_logs_go_where_they_were_wanted(spec: MachineSpec, tmp_path: Path, runtime: Path) -> None:
    with Machine(spec, tmp_path / "here") as machine:
        machine.console.wait_output(BOOT_SECONDS)
    assert (tmp_path / "here" / "console.log").stat().st_size > 0
    with Machine(spec, keep=True) as machine:
        pass
    assert [path.name for path in runtime.iterdir()] == [machine.workdir.name]
    with pytest.raises(KeyboardInterrupt), Machine(spec) as machine:
        raise KeyboardInterrupt
    assert not machine.workdir.exists()


def test_machines_run_side_by_side_and_outlive_the_thread_that_started_them(spec: MachineSpec) -> None:
    with contextlib.ExitStack() as stack:
        machines: list[Machine] = []
        starter = threading.Thread(
            target=lambda: machines.extend(stack.enter_context(Machine(spec)) for _ in range(2))
        )
        starter.start()
        starter.join()
        for machine in machines:
            booted(machine).check()
        assert len({machine.pid for machine in machines}) == 2


CHILD = """
import sys
from pathlib import Path
from harness.vm import Accel, Machine, MachineSpec
spec = MachineSpec(kernel=Path(sys.argv[1]), initrd=Path(sys.argv[2]), memory_mib=256, accel=Accel.TCG)
with Machine(spec) as machine:
    print(machine.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "Ctrl-C"])
def test_no_qemu_outlives_its_parent(number: signal.Signals, spec: MachineSpec, runtime: Path) -> None:
    # Whoever started the tests may ignore Ctrl-C, as background jobs of a shell do; that is inherited.
    command = ["env", "--default-signal=INT", sys.executable, "-c", CHILD, str(spec.kernel), str(spec.initrd)]
    shm = set(Path("/dev/shm").iterdir())
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    ) as parent:
        assert parent.stdout is not None
        qemu = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.send_signal(number)
            poller = select.poll()
            poller.register(qemu, select.POLLIN)
            limit = 1000 if number is signal.SIGKILL else 10_000  # in order takes the ladder's time
            assert poller.poll(limit), "QEMU outlived its parent"
        finally:
            os.close(qemu)
    assert {path for path in set(Path("/dev/shm").iterdir()) - shm if "iobmd" in path.name} == set()
    # In order the machine removed its folder itself; a killed owner has an heir, who needs a moment.
    end = time.monotonic() + (0 if number is signal.SIGINT else 2)
    while list(runtime.iterdir()) and time.monotonic() < end:
        time.sleep(0.01)
    assert list(runtime.iterdir()) == []


@pytest.mark.skipif(not KVM_DEVICE.exists(), reason="this host has no /dev/kvm")
def test_kvm_is_judged_by_a_guest(spec: MachineSpec, tmp_path: Path) -> None:
    auto = dataclasses.replace(spec, accel=Accel.AUTO)
    verdict = choose_accelerator(auto, cache=tmp_path)
    start = time.monotonic()
    assert choose_accelerator(auto, cache=tmp_path) == verdict
    if "started, but" not in verdict.reason and "panicked" not in verdict.reason:
        assert time.monotonic() - start < 0.5  # remembered
    forced = dataclasses.replace(spec, accel=Accel.KVM)
    if verdict.name == "kvm":
        with Machine(forced, accelerator=verdict) as machine:
            assert booted(machine).qmp.execute("query-kvm")["enabled"] is True
    elif str(KVM_DEVICE) in verdict.reason:
        with pytest.raises(HostLacks, match="does not work on this host") as caught:
            choose_accelerator(forced, cache=tmp_path)
        assert caught.value.observed == verdict.reason
