# SPDX-License-Identifier: MIT
"""Kinds of failure, and what the host runs out of."""

import errno
import importlib
import pkgutil
import threading

import pytest

import harness
from harness.errors import (
    BadInput,
    FailureKind,
    GuestFailure,
    HarnessError,
    HostExhausted,
    HostLacks,
    exhaustion,
    exhaustion_told,
    named_exhaustion,
)

K = FailureKind


def _all_errors():
    for module in pkgutil.walk_packages(harness.__path__, "harness."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, open_ = set(), [HarnessError]
    while open_:
        one = open_.pop()
        open_ += one.__subclasses__()
        found.add(one)
    return {one for one in found if one.__module__.startswith("harness.")}


def test_every_error_has_a_kind_and_its_exit_code():
    errors = _all_errors()
    assert len(errors) > 30
    for one in errors:
        assert one.exit_code == one.kind.exit_code, one


def test_words_and_codes_tell_kinds_apart():
    assert len({kind.word for kind in K}) == len(K)
    codes = [kind.exit_code for kind in K if kind not in (K.BAD_INPUT, K.HOST_LACKS, K.NOT_DONE)]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 126 or code == 130 for code in codes)  # 126 and on are the shell's
    assert all((kind.meaning and kind.meaning[0].islower()) or kind.meaning[0] == "Q" for kind in K)


def test_the_kinds_that_were_promised():
    by_name = {one.__name__: one.kind for one in _all_errors()}
    assert {
        name: by_name[name] for name in ("OperationTimedOut", "AgentDead", "GuestPanicked", "KernelHung")
    } == {
        "OperationTimedOut": K.OPERATION_TIMED_OUT,
        "AgentDead": K.AGENT_DEAD,
        "GuestPanicked": K.KERNEL_PANICKED,
        "KernelHung": K.KERNEL_HUNG,
    }
    assert by_name["KernelTainted"] is K.KERNEL_TAINTED
    assert by_name["QemuDied"] is K.QEMU_DIED
    assert by_name["QemuRefused"] is K.BAD_INPUT
    assert by_name["ChannelBroken"] is K.CHANNEL_BROKEN
    assert by_name["CacheFull"] is K.HOST_EXHAUSTED
    assert by_name["CheckFault"] is K.HARNESS_BUG
    assert by_name["GuestOSError"] is K.REFUSED


def test_one_error_can_be_called_otherwise():
    error = GuestFailure("x")
    error.call_it(K.KERNEL_HUNG)
    assert (error.exit_code, GuestFailure.exit_code) == (13, 3)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "space on the disk"),
        (OSError(errno.EDQUOT, "x"), "quota"),
        (OSError(errno.ENOMEM, "x"), "memory"),
        (OSError(errno.EMFILE, "x"), "file descriptors for this process"),
        (OSError(errno.ENFILE, "x"), "file descriptors on this host"),
        (MemoryError(), "memory"),
        (RuntimeError("can't start new thread"), "processes or threads"),
    ],
)
def test_what_a_host_runs_out_of(error, words):
    found = exhaustion(error, "testing")
    assert isinstance(found, HostLacks)
    assert words in found.summary
    assert (found.tried, found.exit_code) == ("testing", 18)
    assert found.hint
    with pytest.raises(HostExhausted) as caught, named_exhaustion("testing"):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "x"),
        OSError("x"),
        BlockingIOError(errno.EAGAIN, "x"),
        RuntimeError("x"),
        KeyError(),
    ],
)
def test_what_means_something_else(error):
    assert exhaustion(error, "testing") is None
    with pytest.raises(type(error)) as caught, named_exhaustion("testing"):
        raise error
    assert caught.value is error


def test_a_fork_that_fails():
    error = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    assert "processes" in exhaustion(error, "testing", forking=True).summary


def test_a_named_error_passes_unchanged():
    error = BadInput("x")
    with pytest.raises(BadInput) as caught, named_exhaustion("testing"):
        raise error
    assert caught.value is error


def test_the_interpreters_own_words_for_no_thread(monkeypatch):
    """The text that `exhaustion` goes by is still what threading says."""
    monkeypatch.setattr(
        threading,
        "_start_new_thread",
        lambda *_: (_ for _ in ()).throw(RuntimeError("can't start new thread")),
    )
    with pytest.raises(HostExhausted), named_exhaustion("testing"):
        threading.Thread(target=print).start()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("qemu-system-x86_64: cannot set up guest memory 'ram': Cannot allocate memory", "memory"),
        ("qemu: could not open: Too many open files", "for this process"),
        ("qemu: could not open: Too many open files in system", "on this host"),
        ("sh: 1: Cannot fork: Resource temporarily unavailable", "processes"),
        ("qemu: write failed: No space left on device", "space on the disk"),
    ],
)
def test_what_programs_say(line, words):
    found = exhaustion_told(["hello", line], "starting QEMU")
    assert words in found.summary
    assert line in found.observed
    assert exhaustion_told(["'z80' is no CPU"], "starting QEMU") is None
