# SPDX-License-Identifier: MIT
"""`iobmd repro` without a guest: which folders, kernels and tests it takes, and what it says of others."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import repro
from harness.cli import main
from harness.errors import BadInput
from harness.images import SilentProgress
from harness.repro import KernelFiles, Record

PROGRESS = SilentProgress()


@pytest.fixture
def record(tmp_path, monkeypatch):
    """A record whose test and kernel exist, and the recipe still means that kernel."""
    vmlinuz = tmp_path / "vmlinuz"
    vmlinuz.write_bytes(b"a kernel")
    (tmp_path / "test_it.py").write_text("def test_bad(): pass")
    kernel = KernelFiles(
        "debian-6.1-cloud", "6.1.0-1", str(vmlinuz), str(tmp_path), str(tmp_path), repro.digest(vmlinuz)
    )
    recipe_gives(monkeypatch, vmlinuz)
    return Record(
        "test_it.py::test_bad", str(tmp_path), kernel, ("--kernel", "debian-6.1-cloud", "--memory", "512"),
        ("--hypothesis-seed=3",), {"PYTHONHASHSEED": "7", "PYTHONPATH": None}, "kernel-tainted",
    )  # fmt: skip


def recipe_gives(monkeypatch, vmlinuz):
    monkeypatch.setattr(repro, "prepare_kernel", lambda *_: SimpleNamespace(vmlinuz=vmlinuz))


def written(record, folder):
    folder.mkdir(exist_ok=True)
    (folder / "repro.json").write_text(json.dumps(record.to_json()))
    return folder


def test_a_record_comes_back_as_it_went(record, tmp_path):
    assert Record.load(written(record, tmp_path / "results")) == record


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (None, "is not the results folder of a failed test"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": 1}', "cannot be read"),
        ('{"format": 2}', "was written by another version of iobmd"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, capsys, contents, words):
    if contents is not None:
        (tmp_path / "repro.json").write_text(contents)
    assert main(["repro", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_of_folders_names_those_in_it(record, tmp_path, capsys):
    written(record, tmp_path / "test_bad")
    assert main(["repro", str(tmp_path)]) == 2
    assert "folders in it that have one: test_bad" in capsys.readouterr().err
    assert main(["repro", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_same_kernel_is_named_as_it_was(record):
    assert repro.kernel_words(record, PROGRESS) == list(record.machine)


def test_an_older_kernel_that_is_still_there_is_named_by_its_files(record, tmp_path, monkeypatch):
    newer = tmp_path / "newer"
    newer.write_bytes(b"a newer kernel")
    recipe_gives(monkeypatch, newer)
    assert repro.kernel_words(record, PROGRESS) == [
        "--kernel", record.kernel.vmlinuz, "--modules", str(tmp_path), "--headers", str(tmp_path),
        "--memory", "512",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["removed", "changed"])
def test_a_kernel_that_is_gone_is_named(record, tmp_path, monkeypatch, how):
    newer = tmp_path / "newer"
    newer.write_bytes(b"a newer kernel")
    recipe_gives(monkeypatch, newer)
    if how == "removed":
        Path(record.kernel.vmlinuz).unlink()
    else:
        Path(record.kernel.vmlinuz).write_bytes(b"not the one")
    with pytest.raises(BadInput, match=r"the kernel 6\.1\.0-1 that the test ran on is gone") as raised:
        repro.kernel_words(record, PROGRESS)
    assert "debian-6.1-cloud is another kernel by now" in raised.value.observed


def test_one_of_several_kernels_is_looked_up_by_its_own_name(record):
    several = replace(record, machine=("--kernel", "all", "--memory", "512"))
    assert repro.kernel_words(several, PROGRESS) == ["--kernel", "all", "--memory", "512"]


def test_pytest_is_started_with_all_of_it(record, tmp_path, monkeypatch):
    started = []

    def run(argv, **how):
        started.append((argv, how))
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-x")
    assert repro.run(written(record, tmp_path / "results")) == 1
    ((argv, how),) = started
    assert argv[1:] == ["-m", "pytest", record.test, *record.machine, *record.settings]
    assert how["cwd"] == tmp_path
    assert how["env"]["PYTHONHASHSEED"] == "7"
    assert "PYTHONPATH" not in how["env"]
    assert "PYTEST_ADDOPTS" not in how["env"]


@pytest.mark.parametrize("status", [4, 5])
def test_a_test_that_is_gone_is_named(record, tmp_path, monkeypatch, status):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=status))
    with pytest.raises(BadInput, match=r"pytest does not find test_it\.py::test_bad"):
        repro.run(written(record, tmp_path / "results"))
    (tmp_path / "test_it.py").unlink()
    with pytest.raises(BadInput, match="there is no file"):
        repro.run(written(record, tmp_path / "results"))
