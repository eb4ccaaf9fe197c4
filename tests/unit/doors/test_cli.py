# SPDX-License-Identifier: MIT
"""The console door without a guest: what it answers to bad input, and how it exits."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import cli
from harness.contract.catalogue import catalogue
from harness.contract.model import ClauseResult, Judgement, Provenance, Verdict
from harness.errors import BadInput, GuestFailure
from harness.machines import MACHINES
from harness.vm import GuestPanicked, QemuDied
from harness.vm import Scene as Left

PROVENANCE = Provenance("custom", "6.1.0", "7.2", "tcg", "asked for", "q35", "0123")


@dataclass
class Scene:
    """What the fake judge finds, or raises."""

    verdict: Verdict = Verdict.HOLDS
    error: BaseException | None = None
    after: int = 0
    judged: tuple[str, ...] = ()


@pytest.fixture
def scene(monkeypatch, tmp_path):
    scene = Scene()

    def judge(guest, iokit, oracle, clauses, progress, *, into):  # noqa: ARG001
        scene.judged = tuple(clause.id for clause in clauses)
        for clause in clauses:
            if scene.error is not None and len(into) == scene.after:
                raise scene.error
            into.append(ClauseResult(clause, scene.verdict))
        return Judgement(tuple(into), PROVENANCE, 1.0, 2.0)

    guest = SimpleNamespace(machine=None)
    monkeypatch.setattr(cli, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(cli, "make_guest", lambda *_, **__: contextlib.nullcontext(guest))
    monkeypatch.setattr(cli, "IOKit", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(cli, "Oracle", lambda _: None)
    monkeypatch.setattr(cli, "judge", judge)
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return scene


def test_all_well_exits_0_and_prints_the_sum(scene, capsys):
    assert cli.main(["check"]) == 0
    assert f"holds {len(catalogue())}, broken 0" in capsys.readouterr().out
    assert scene.judged == tuple(catalogue())


def test_a_broken_clause_exits_1(scene, capsys):
    scene.verdict = Verdict.BROKEN
    assert cli.main(["check", "--group", "C08"]) == 1
    out = capsys.readouterr().out
    assert "BROKEN" in out
    assert "not applicable 0, unproved 172 of 173" in out


def test_groups_and_clauses_can_be_picked(scene):
    cli.main(["check", "--group", "b", "--group", "C08"])
    assert scene.judged == (*(f"B{n:02}" for n in range(1, 12)), "C08")


def test_a_dead_guest_exits_3_and_says_how_far_it_came(scene, capsys):
    scene.error, scene.after = GuestFailure("QEMU died", observed="signal 9"), 2
    assert cli.main(["check", "--group", "A"]) == 3
    err = capsys.readouterr().err
    assert "QEMU died" in err
    assert "signal 9" in err
    assert "2 of 19 clauses were judged before, the last was A02" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["check", "--group", "Z9"], "no clause or group is called 'Z9'"),
        (["check", "--json", "nowhere/x.json"], "there is no folder"),
        (["check", "--json", "."], "it is a folder"),
    ],
)
def test_bad_input_exits_2_before_anything_boots(scene, capsys, argv, words):
    assert cli.main(argv) == 2
    assert words in capsys.readouterr().err
    assert scene.judged == ()


def test_an_unknown_recipe_exits_2_and_names_the_known_ones(capsys):
    assert cli.main(["check", "--kernel", "debian-6.2"]) == 2
    err = capsys.readouterr().err
    assert "did you mean" in err
    assert "debian-6.12-cloud" in err


def test_too_little_memory_exits_2(capsys, monkeypatch):
    monkeypatch.setattr(cli, "prepare", lambda *_, **__: pytest.fail("nothing is prepared for a bad machine"))
    assert cli.main(["check", "--memory", "64"]) == 2
    assert "64 MiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [[], ["check", "--accel", "magic"], ["check", "--cpus", "two"], ["nonsense"]]
)
def test_words_that_are_no_command_exit_2_with_usage(capsys, argv):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: iobmd" in capsys.readouterr().err


def test_ctrl_c_exits_130(scene, capsys):
    scene.error = KeyboardInterrupt()
    assert cli.main(["check"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """A kernel without a single module."""
    monkeypatch.setattr(
        cli, "prepare_kernel", lambda *_, **__: SimpleNamespace(modules=tmp_path, release="6.1")
    )


@pytest.mark.usefixtures("kernel")
def test_several_machines_are_judged_one_after_the_other(scene, capsys):
    assert cli.main(["check", "--machine", "pc,7-gib", "--json", "report.json"]) == 0
    out = capsys.readouterr().out
    assert "on 2 machines" in out
    assert f"holds {2 * len(catalogue())}, broken 0" in out
    document = json.loads(Path("report.json").read_text())
    assert document["schema"] == "iobmd.judgements/1"
    assert list(document["machines"]) == ["pc", "7-gib"]
    assert document["machines"]["pc"]["schema"] == "iobmd.judgement/1"
    scene.verdict = Verdict.BROKEN
    assert cli.main(["check", "--machine", "pc,7-gib", "--group", "C08"]) == 1
    assert capsys.readouterr().out.count("C08   BROKEN") == 2


@pytest.mark.usefixtures("scene", "kernel")
def test_all_machines_are_those_the_kernel_can_run_on(capsys):
    assert cli.main(["check", "--machine", "all", "--group", "C08"]) == 0
    out = capsys.readouterr().out
    assert f"on {len(MACHINES) - 1} machines" in out
    assert "left out: virtio-iommu: Linux 6.1 has no virtio_iommu" in out
    assert cli.main(["check", "--machine", "pc,virtio-iommu", "--group", "C08"]) == 2
    assert "cannot be had with this kernel" in capsys.readouterr().err


def test_machines_are_listed(capsys):
    assert cli.main(["machines"]) == 0
    out = capsys.readouterr().out
    assert all(name in out and machine.about in out for name, machine in MACHINES.items())


@pytest.mark.usefixtures("scene")
def test_json_is_written_beside_the_table(tmp_path):
    assert cli.main(["check", "--json", "report.json"]) == 0
    assert '"schema": "iobmd.judgement/1"' in (tmp_path / "report.json").read_text()


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (None, 0),
        (QemuDied("gone", status=0, scene=Left(), why="the guest powered itself off"), 0),
        (QemuDied("gone", status=-9, scene=Left()), 15),
        (GuestPanicked("Kernel panic - not syncing", scene=Left()), 12),
    ],
)
def test_boot_tells_a_guest_that_was_left_from_one_that_died(scene, monkeypatch, capsys, end, code):  # noqa: ARG001
    def check():
        if end is not None:
            raise end

    console = SimpleNamespace(interact=lambda: None)
    machine = SimpleNamespace(describe=lambda: "q35", console=console, check=check)
    guest = SimpleNamespace(machine=machine, hello=SimpleNamespace(release="6.1.0"))
    monkeypatch.setattr(cli, "make_guest", lambda *_, **__: contextlib.nullcontext(guest))
    assert cli.main(["boot"]) == code
    told = capsys.readouterr()
    assert ("powered itself off" in told.out) is (end is not None and code == 0)


def test_an_error_says_what_to_type(capsys, monkeypatch):
    def fails(*_, **__):
        raise BadInput("no such thing", tried="looking", observed="nothing", hint="iobmd doctor")

    monkeypatch.setattr(cli, "prepare", fails)
    assert cli.main(["check"]) == 2
    err = capsys.readouterr().err
    for words in ("iobmd: no such thing", "tried: looking", "observed: nothing", "hint: iobmd doctor"):
        assert words in err
