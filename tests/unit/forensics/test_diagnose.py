# SPDX-License-Identifier: MIT
"""Which probes answer, and what the failure is therefore called."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest

from harness.errors import BadInput, FailureKind, GuestFailure, HarnessBug, HostExhausted, Sign
from harness.forensics import KernelTainted, diagnose, diagnosed
from harness.forensics import diagnose as diagnose_function
from harness.link import AgentDead, ChannelBroken, KernelHung, NotRestored, OperationTimedOut, RequestTimedOut
from harness.vm import GuestPanicked, GuestSilent, QemuDied, QemuStuck, QmpLost, QmpSilent, Scene

K = FailureKind
IDLE, USER, SPIN, DEAF, HALTED, EARLY = "IDLE", "USER", "SPIN", "DEAF", "HALTED", "EARLY"


def timed_out(answers: bool | None = False) -> RequestTimedOut:
    return RequestTimedOut(
        "getpid(): no reply within 1 s",
        agent_answers=answers,
        observed="the agent is silent",
        hint="",
        evidence=("console: x",),
    )


def silent() -> GuestSilent:
    return GuestSilent("the console is silent", seconds=1, scene=Scene(console=("x",)))


# What the probes see -> what it is.  Everything that is not named is as in a healthy guest, but the agent.
TABLE = [
    pytest.param({"agent": True}, K.OPERATION_TIMED_OUT, id="agent-answers"),
    pytest.param({"agent": True, "qmp": "lost"}, K.OPERATION_TIMED_OUT, id="agent-answers-protocol-gone"),
    pytest.param({"agent": True, "qmp": "silent"}, K.OPERATION_TIMED_OUT, id="agent-answers-protocol-silent"),
    pytest.param({"cpus": (IDLE,)}, K.AGENT_DEAD, id="blocked-agent"),
    pytest.param({"cpus": (USER,)}, K.AGENT_DEAD, id="looping-agent"),
    pytest.param({"cpus": (IDLE,), "ticks": False}, K.AGENT_DEAD, id="sysrq-alone-proves-the-kernel"),
    pytest.param({"cpus": (IDLE,), "sysrq": False}, K.AGENT_DEAD, id="the-clock-alone-proves-the-kernel"),
    pytest.param({"cpus": (USER, SPIN)}, K.AGENT_DEAD, id="one-of-two-in-the-kernel"),
    pytest.param({"cpus": (SPIN,), "printing": True}, K.AGENT_DEAD, id="busy-printing"),
    pytest.param({"behind": True}, K.CHANNEL_BROKEN, id="agent-waits-for-the-rest-of-a-frame"),
    pytest.param({"cpus": (SPIN,)}, K.KERNEL_HUNG, id="spins-with-interrupts-on"),
    pytest.param({"cpus": (SPIN,), "shy": 1}, K.KERNEL_HUNG, id="spins-and-is-slow-to-say-so"),
    pytest.param({"cpus": (SPIN,), "shy": 9}, K.AGENT_DEAD, id="never-says-what-it-does"),
    pytest.param({"cpus": (SPIN, SPIN)}, K.KERNEL_HUNG, id="both-spin"),
    pytest.param({"cpus": (IDLE, DEAF)}, K.KERNEL_HUNG, id="one-of-two-deaf"),
    pytest.param({"cpus": (IDLE, HALTED)}, K.KERNEL_HUNG, id="one-of-two-halted"),
    pytest.param({"cpus": (DEAF,), "ticks": False, "sysrq": False}, K.KERNEL_HUNG, id="only-nmi"),
    pytest.param(
        {"cpus": (DEAF,), "ticks": False, "sysrq": False, "nmi": False}, K.KERNEL_HUNG, id="nothing-at-all"
    ),
    pytest.param({"cpus": (), "ticks": False, "sysrq": False}, K.KERNEL_HUNG, id="registers-unknown"),
    pytest.param({"qmp": "lost", "ticks": False}, K.KERNEL_HUNG, id="protocol-gone-clock-stands"),
    pytest.param({"qmp": "lost"}, K.AGENT_DEAD, id="protocol-gone-clock-ticks"),
    pytest.param({"qmp": "silent"}, K.AGENT_DEAD, id="protocol-silent-clock-ticks"),
    pytest.param({"qmp": "silent", "ticks": False}, K.QEMU_STUCK, id="protocol-silent-clock-stands"),
    pytest.param({"status": "paused"}, K.QEMU_STUCK, id="paused"),
    pytest.param({"status": "internal-error"}, K.QEMU_STUCK, id="internal-error"),
    pytest.param({"clock": None, "sysrq": False, "cpus": (DEAF,)}, K.KERNEL_HUNG, id="hung-in-its-boot"),
    pytest.param({"clock": None, "sysrq": False, "cpus": (EARLY,)}, K.KERNEL_HUNG, id="hung-in-firmware"),
]


def named(cpus: tuple[str, ...]) -> tuple[str, ...]:
    source = Path(__file__).with_name("conftest.py").read_text()
    scope: dict[str, str] = {}
    for line in source.splitlines():
        name, _, value = line.partition(" = ")
        if name in (IDLE, USER, SPIN, DEAF, HALTED, EARLY):
            scope[name] = value.strip('"')
    return tuple(scope[cpu] for cpu in cpus)


def make(patient, **signs):
    if "cpus" in signs:
        signs["cpus"] = named(signs["cpus"])
    return patient(**signs)


@pytest.mark.parametrize(("signs", "kind"), TABLE)
def test_the_table(patient, signs, kind):
    guest = make(patient, **signs)
    before = time.monotonic()
    found = diagnose(guest, timed_out())
    assert time.monotonic() - before < 20  # nothing here is real, least of all the waiting
    assert found.kind is kind
    assert found.exit_code == kind.exit_code
    assert found.summary == "getpid(): no reply within 1 s"
    assert found.probes
    assert isinstance(found.__cause__, RequestTimedOut)
    for probe in found.probes:
        assert probe.question in str(found)
        assert probe.answer in str(found)


CLASSES = {
    K.OPERATION_TIMED_OUT: OperationTimedOut,
    K.AGENT_DEAD: AgentDead,
    K.KERNEL_HUNG: KernelHung,
    K.QEMU_STUCK: QemuStuck,
    K.CHANNEL_BROKEN: ChannelBroken,
}


@pytest.mark.parametrize(("signs", "kind"), TABLE)
@pytest.mark.parametrize("error", [timed_out, silent], ids=["request", "console"])
def test_each_kind_has_its_class(patient, signs, kind, error):
    assert type(diagnose(make(patient, **signs), error())) is CLASSES[kind]


def test_what_cannot_be_asked_is_not_guessed(patient):
    """No clock, no protocol: the raw finding stays, with the reasons why."""
    guest = patient(clock=None, qmp="lost")
    error = timed_out()
    assert diagnose(guest, error) is error
    assert error.kind is K.GUEST_FAILED
    assert {probe.name: probe.verdict for probe in error.probes}["NMI"] is Sign.UNKNOWN


def test_a_stopped_process_is_seen_before_anything_is_asked(patient, monkeypatch):
    monkeypatch.setattr("harness.forensics.probes.process_stat", lambda _: ("T", 1.0))
    guest = patient()
    found = diagnose(guest, timed_out())
    assert isinstance(found, QemuStuck)
    assert "stopped" in found.observed
    assert guest.asked == []
    assert "by hand: qemu" in found.evidence


def test_an_answering_agent_is_not_disturbed(patient):
    guest = patient(agent=True)
    diagnose(guest, timed_out(None))
    assert guest.asked == ["query-status", "ping"]


def test_a_living_kernel_gets_no_nmi(patient):
    guest = patient()
    diagnose(guest, timed_out())
    assert "inject-nmi" not in guest.asked
    assert guest.asked[-1] == "megabyte"


def test_a_dead_kernel_is_not_sent_a_megabyte(patient):
    guest = make(patient, cpus=(DEAF,), ticks=False, sysrq=False)
    diagnose(guest, timed_out())
    assert "megabyte" not in guest.asked


PANIC = GuestPanicked("Kernel panic - not syncing", scene=Scene())
GONE = QemuDied("QEMU ended", status=-11, scene=Scene())


@pytest.mark.parametrize("worse", [PANIC, GONE], ids=["panic", "death"])
@pytest.mark.parametrize("moment", ["", "query-status", "chardev-send-break"])
def test_a_dead_machine_explains_everything(patient, worse, moment):
    """Also when it dies while it is examined."""
    guest = patient(dead=worse, dies_at=moment)
    found = diagnose(guest, timed_out())
    assert found is worse
    assert guest.asked[-1:] == ([moment] if moment else [])


@pytest.mark.parametrize(
    "error",
    [
        PANIC,
        GONE,
        NotRestored("no"),
        KernelTainted("an oops"),
        BadInput("no"),
        OperationTimedOut("x", agent_answers=True, observed="", hint="", evidence=()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_clear_is_not_examined(patient, error):
    guest = patient(dead=AssertionError("examined"))
    assert diagnose(guest, error) is error
    assert guest.asked == []


def test_a_second_look_changes_nothing(patient):
    found = diagnose(patient(), timed_out())
    assert diagnose(patient(dead=AssertionError("examined")), found) is found


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ChannelBroken("noise"), K.CHANNEL_BROKEN),
        (QmpLost("gone", command="stop"), K.CHANNEL_BROKEN),
    ],
)
def test_a_broken_channel_stays_one_and_tells_who_lives(patient, error, kind):
    guest = patient(agent=True)
    found = diagnose(guest, error)
    assert found is error
    assert found.kind is kind
    assert [probe.verdict for probe in found.probes][:3] == [Sign.LIFE] * 3


def test_silence_on_the_protocol(patient):
    error = QmpSilent("QEMU did not answer 'stop'", command="stop")
    assert diagnose(patient(qmp="silent", ticks=False), error).kind is K.QEMU_STUCK
    again = QmpSilent("QEMU did not answer 'stop'", command="stop")
    assert diagnose(patient(agent=True), again) is again
    assert again.probes


def test_a_kill_for_lack_of_memory_is_the_hosts(patient, monkeypatch):
    killed = QemuDied("QEMU ended", status=-9, scene=Scene(console=("x",)))
    assert diagnose(patient(), killed) is killed
    module = __import__("sys").modules[diagnose_function.__module__]
    monkeypatch.setattr(module, "_VICTIMS_BEFORE", module._victims() - 1)
    found = diagnose(patient(), killed)
    assert isinstance(found, HostExhausted)
    assert found.__cause__ is killed
    assert found.evidence == killed.evidence
    segfault = QemuDied("QEMU ended", status=-11, scene=Scene())
    assert diagnose(patient(), segfault) is segfault


def test_errors_of_others(patient):
    full = OSError(errno.ENOSPC, "No space left on device")
    found = diagnose(patient(), full)
    assert found.kind is K.HOST_EXHAUSTED
    assert found.__cause__ is full
    assert diagnose(patient(), MemoryError()).kind is K.HOST_EXHAUSTED
    assert isinstance(diagnose(patient(), KeyError("x")), HarnessBug)


def test_threads_that_wait_for_one_guest_share_the_finding(patient):
    guest = patient(cpus=named((DEAF,)), ticks=False, sysrq=False)
    found = []
    threads = [threading.Thread(target=lambda: found.append(diagnose(guest, timed_out()))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.kind for one in found] == [K.KERNEL_HUNG] * 5
    assert guest.asked.count("inject-nmi") == 1
    guest.generation += 1  # another life: nothing is known of it
    diagnose(guest, timed_out())
    assert guest.asked.count("inject-nmi") == 2


def test_a_block_is_left_by_the_right_name(patient):
    with pytest.raises(AgentDead) as caught, diagnosed(patient()):
        raise timed_out()
    assert isinstance(caught.value.__cause__, RequestTimedOut)
    with pytest.raises(GuestPanicked), diagnosed(patient()):
        raise PANIC
    with pytest.raises(HostExhausted), diagnosed(patient()):
        raise OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(ZeroDivisionError), diagnosed(patient()):
        raise ZeroDivisionError
    with pytest.raises(GuestFailure, match="odd") as caught, diagnosed(patient()):
        raise GuestFailure("odd")
    assert caught.value.__cause__ is None
