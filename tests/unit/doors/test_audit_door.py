# SPDX-License-Identifier: MIT
"""``iobmd audit`` and the fixture ``audit`` without a guest: what is asked for, and how mistakes are told."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from harness import audit_door, cli
from harness.audit import Site, rules
from harness.audit.findings import Finding
from harness.audit.rules import rule
from harness.auditing import Equipment, failures_of
from harness.errors import BadInput, GuestFailure, HarnessError
from harness.images import SilentProgress, load_recipes
from harness.link import GuestOptions
from harness.pytest_plugin import audits
from harness.vm import Disk, DiskModel, Network, NetworkModel


@pytest.fixture(autouse=True)
def driver(tmp_path, monkeypatch):
    """A folder called ring that could be a driver's; nothing may be downloaded for a mistake."""
    (tmp_path / "ring").mkdir()
    (tmp_path / "ring" / "Kbuild").write_text("obj-m := ring.o\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(audit_door, "prepare_kernel", lambda *_, **__: pytest.fail("a kernel was prepared"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "which driver"),
        (("./gone",), "there is no ./gone"),
        (("ring", "--kernel", "debian-6.2"), "there is no kernel recipe 'debian-6.2'"),
        (("ring", "--kernel", "debian-6.1,debian-6.2"), "there is no kernel recipe 'debian-6.2'"),
        (("ring", "--machine", "intel-iomu"), "there is no machine 'intel-iomu'"),
        (("ring", "--device", ""), "--device is empty"),
        (("ring", "--exercise", "gone.sh"), "there is no exercise gone.sh"),
        (("ring", "--exercise", "none", "--exercise", "traffic"), "--exercise none and something to do"),
        (("ring", "--json", "no/such/folder.json"), "could not be written"),
        (("--rule", "free-sise"), "there is no rule free-sise"),
    ],
)
def test_a_mistake_is_told_before_anything_is_downloaded(words, said, capsys):
    assert cli.main(["audit", *words]) == 2
    assert said in capsys.readouterr().err


def test_rules_are_listed_and_explained(capsys):
    assert cli.main(["audit", "--list-rules"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^{name} ", listed, re.MULTILINE) for name in rules())
    assert cli.main(["audit", "--rule", "free-size", "--rule", "above-mask"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("free-size ")
    assert "\nabove-mask " in told


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        cli.main(["audit", "--help"])
    told = capsys.readouterr().out
    for words in (
        "./mydriver.ko",
        "--device e1000e",
        "def exercise(run)",
        "traffic",
        "exit codes",
        "audit.module(",
    ):
        assert words in told


def test_every_kernel_with_every_machine():
    parser = cli._parser()
    asked = parser.parse_args(["audit", "ring", "--kernel", "all", "--machine", "usual,pc"])
    wanted = [(one.kernel, one.machine) for one in audit_door._wanted(asked)]
    assert wanted == [(kernel, machine) for kernel in load_recipes() for machine in ("usual", "pc")]


def test_a_machine_a_kernel_cannot_run_on(tmp_path, monkeypatch):
    kernel = SimpleNamespace(release="6.1", modules=tmp_path)  # no modules at all
    monkeypatch.setattr(audit_door, "prepare_kernel", lambda *_, **__: kernel)

    def on(asked):
        arguments = cli._parser().parse_args(["audit", "ring", "--machine", asked])
        options = [one for one in audit_door._wanted(arguments) if one.machine == "virtio-iommu"]
        return audit_door._Job(arguments, Equipment(), (), SilentProgress()).on(*options)

    assert on("all") is None
    with pytest.raises(BadInput, match="the machine virtio-iommu cannot be had"):
        on("virtio-iommu")


def test_of_all_kernels_those_without_the_driver_are_left_out(tmp_path, monkeypatch, capsys):
    def lacks(*_, **__):
        raise BadInput("this kernel has no module e1000e")

    kernel = SimpleNamespace(release="6.1", modules=tmp_path)
    monkeypatch.setattr(audit_door, "prepare_kernel", lambda *_, **__: kernel)
    monkeypatch.setattr(audit_door, "prepare", lambda *_: SimpleNamespace(kernel=kernel))
    monkeypatch.setattr(audit_door, "prepared", lacks)
    assert cli.main(["audit", "e1000e", "--kernel", "all"]) == 2
    told = capsys.readouterr().err
    assert told.count("left out: this kernel has no module e1000e") == len(load_recipes())
    assert "no kernel and machine to audit e1000e on" in told
    assert cli.main(["audit", "e1000e", "--kernel", "debian-6.1"]) == 2
    assert "left out" not in capsys.readouterr().err


def test_disks_and_networks_come_with_all_that_belongs_to_them():
    equipment = Equipment(("nvme", "edu,dma_mask=0xff", "e1000e", "ahci", "virtio-net-pci"))
    made = equipment.added_to(GuestOptions())
    assert made.disks == (Disk(DiskModel.NVME), Disk(DiskModel.AHCI))
    assert made.networks == (Network(NetworkModel.E1000E), Network(NetworkModel.VIRTIO))
    assert made.devices == ("edu,dma_mask=0xff",)
    assert equipment.companions == ("sd_mod",)
    assert equipment.exercise is not None
    assert str(equipment) == "nvme, edu,dma_mask=0xff, e1000e, ahci, virtio-net-pci"


def test_what_has_no_traffic_has_no_usual_exercise():
    assert Equipment(("edu",)).exercise is None
    assert Equipment(("edu",)).companions == Equipment().companions == ()


def test_an_iommu_comes_before_what_is_behind_it_and_is_turned_on():
    made = Equipment(("edu", "intel-iommu,intremap=off")).added_to(GuestOptions(devices=("pvpanic-pci",)))
    assert made.devices == ("intel-iommu,intremap=off", "pvpanic-pci", "edu")
    assert made.cmdline == ("intel_iommu=on",)
    already = GuestOptions(devices=("intel-iommu,intremap=off",), cmdline=("intel_iommu=on",))
    assert Equipment(("edu",)).added_to(already).cmdline == already.cmdline


def test_words_decide_what_is_done():
    equipment = Equipment(("nvme",))
    (usual,) = audit_door._exercises([], equipment)
    assert usual.name.startswith("traffic")
    assert audit_door._exercises(["none"], equipment) == ()
    assert audit_door._exercises([], Equipment()) == ()


def test_a_failure_gets_its_name_and_stays_with_the_run(monkeypatch):
    worse, better = GuestFailure("no answer"), GuestFailure("the kernel panicked")
    monkeypatch.setattr("harness.auditing.diagnose", lambda guest, error: better)  # noqa: ARG005
    run = SimpleNamespace(guest=None, failure=None)
    with failures_of(run):
        raise worse
    assert run.failure is better


def test_ctrl_c_is_no_failure_of_the_driver():
    def stop():
        try:
            raise KeyboardInterrupt
        finally:
            raise HarnessError("unloading failed, too")

    run = SimpleNamespace(guest=None, failure=None)
    with pytest.raises(KeyboardInterrupt), failures_of(run):
        stop()
    assert run.failure is None


FINDING = Finding(
    rule("free-size"),
    "ring",
    "ring.0",
    "ring",
    Site("ring", "probe", 4, "ring.c", 41),
    None,
    None,
    ("8192 bytes freed as 4096",),
    1,
    3,
)


def test_a_failed_assertion_tells_findings_as_findings():
    told = audits.pytest_assertrepr_compare("==", [FINDING], [])
    assert told[0] == "1 finding, where there was to be none"
    assert told[1].startswith("free-size: ring, ring.c:41 in probe+0x4 [ring]")
    assert any("8192 bytes freed as 4096" in line for line in told)
    missing = audits.pytest_assertrepr_compare("==", [], [FINDING])
    assert missing[:2] == ["none, where there was to be 1 finding", "missing:"]


@pytest.mark.parametrize(
    ("op", "left", "right"), [("!=", [FINDING], []), ("==", [1], []), ("==", FINDING, 1)]
)
def test_other_assertions_are_left_alone(op, left, right):
    assert audits.pytest_assertrepr_compare(op, left, right) is None


def test_a_path_is_looked_for_beside_the_test_first(tmp_path, monkeypatch):
    (tmp_path / "tests" / "ring").mkdir(parents=True)
    (tmp_path / "tests" / "ring" / "Kbuild").write_text("obj-m := ring.o\n")
    (tmp_path / "tests" / "use.sh").write_text("true\n")
    item = SimpleNamespace(path=tmp_path / "tests" / "test_it.py")
    auditor = audits.Auditor(item, None)
    assert auditor._found("ring") == "tests/ring"
    assert auditor._found("e1000e") == "e1000e"
    assert auditor._exercise("use.sh").name == "tests/use.sh, by the guest's sh"
    (tmp_path / "tests" / "ring" / "Kbuild").unlink()
    (tmp_path / "tests" / "ring").rmdir()
    assert auditor._found("ring") == "ring"
    monkeypatch.chdir(tmp_path / "tests")
    with pytest.raises(pytest.fail.Exception, match=r"there is no \./gone"):
        auditor._found("./gone")


def test_bad_equipment_is_bad_input():
    with pytest.raises(BadInput):
        Equipment(("edu", " "))
