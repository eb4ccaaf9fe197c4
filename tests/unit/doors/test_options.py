# SPDX-License-Identifier: MIT
"""Both doors take the same words for the same machine."""

import argparse
from pathlib import Path

import pytest

from harness.errors import BadInput
from harness.options import MachineOptions, add_options, from_namespace
from harness.vm import Accel


def parse(*argv):
    parser = argparse.ArgumentParser()
    add_options(parser.add_argument)
    return from_namespace(parser.parse_args(argv))


def test_nothing_given_is_the_default_recipe():
    assert parse() == MachineOptions()
    assert parse().selector.recipe == "debian-6.1-cloud"


def test_a_name_is_a_recipe_and_a_path_is_a_kernel():
    assert parse("--kernel", "debian-6.12").selector.recipe == "debian-6.12"
    own = parse("--kernel", "./vmlinuz", "--modules", "m", "--headers", "h").selector
    assert (own.recipe, own.vmlinuz, own.modules, own.headers) == (
        None, Path("vmlinuz"), Path("m"), Path("h"),
    )  # fmt: skip


@pytest.mark.parametrize(
    "argv", [("--kernel", "./vmlinuz"), ("--modules", "m"), ("--kernel", "./v", "--headers", "h")]
)
def test_a_kernel_of_ones_own_needs_all_three_parts(argv):
    with pytest.raises(BadInput, match="vmlinuz, modules and headers"):
        _ = parse(*argv).selector


def test_a_file_in_this_folder_is_a_kernel_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("vmlinuz", "debian-6.1"):
        (tmp_path / name).touch()
    own = parse("--kernel", "vmlinuz", "--modules", "m", "--headers", "h").selector
    assert own.vmlinuz == Path("vmlinuz")
    assert parse("--kernel", "debian-6.1").selector.recipe == "debian-6.1"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--kernel", "debian-6.2"), "did you mean"),
        (("--kernel", ""), "--kernel is empty"),
        (("--kernel", "debian-6.1", "--modules", "m"), "either a recipe or files"),
    ],
)
def test_a_kernel_that_cannot_be_is_refused_at_once(argv, words):
    with pytest.raises(BadInput, match=words):
        parse(*argv)


def test_the_machine_is_what_was_typed():
    guest = parse("--memory", "2048", "--cpus", "2", "--accel", "tcg").guest(with_shell=False)
    assert (guest.memory_mib, guest.cpus, guest.accel) == (2048, 2, Accel.TCG)
    assert "iobmd.shell" not in guest.cmdline
    assert "iobmd.shell" in parse().guest(with_shell=True).cmdline


def test_one_factor_for_every_deadline():
    assert parse("--timeout-scale", "2.5").guest(with_shell=False).timeout_scale == 2.5
    assert parse().guest(with_shell=False).timeout_scale == 1
    for factor in ("0", "-1", "nan", "1e9"):
        with pytest.raises(BadInput, match="cannot multiply a deadline"):
            parse("--timeout-scale", factor)


def test_a_machine_by_name_and_what_is_typed_beside_it():
    guest = parse("--machine", "7-gib").guest(with_shell=False)
    assert (guest.memory_mib, guest.cpus) == (7168, 1)
    guest = parse("--machine", "7-gib", "--memory", "5000", "--cpus", "3").guest(with_shell=False)
    assert (guest.memory_mib, guest.cpus) == (5000, 3)
    shell = parse("--machine", "no-pat").guest(with_shell=True)
    assert shell.cmdline == ("nopat", "iobmd.shell")
    assert parse("--machine", "pc").guest(with_shell=False).machine == "pc"


@pytest.mark.parametrize(
    ("name", "words"),
    [("7gib", "did you mean 7-gib"), ("all", "name one of them"), ("pc,usual", "name one of them")],
)
def test_a_machine_that_is_none_is_refused_with_a_hint(name, words):
    with pytest.raises(BadInput, match=f"there is no machine '{name}'") as caught:
        parse("--machine", name)
    assert words in caught.value.hint
