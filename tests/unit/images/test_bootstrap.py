# SPDX-License-Identifier: MIT
"""images/bootstrap on a machine made of scripts: apt, dpkg, pip and sudo are played, and counted."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.images import source_root

TOOLS = (
    *("sh", "cat", "chmod", "cksum", "cp", "cut", "env", "flock", "id", "mkdir", "mktemp", "mv"),
    *("readlink", "rm", "sed", "sha256sum", "tail", "touch", "true"),
)
PROGRAMS = ("qemu-system-x86_64", "gcc", "gcc-12", "make", "strip", "setpriv", "dpkg-deb", "clang-format")
LIBRARIES = ("libc6-dev", "libelf1", "perl")

PYTHON = """#!/bin/sh
echo "python $*" >>{log}
case "$*" in
*"-m venv"*)
	for last; do :; done
	rm -rf "$last"
	mkdir -p "$last/bin"
	cp {bin}/python3 "$last/bin/python"
	{venv}
	;;
*"-m pip"*) {pip} ;;
*sys.version\\)*) echo 3.11.fake ;;
esac
"""


class Machine:
    """One fake machine: a folder of programs, a log of calls, a copy of the project's own files."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.log, self.root = folder / "bin", folder / "log", folder / "project"
        self.home = folder / "home"
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            if found:
                (self.bin / tool).symlink_to(found)
        (self.root / "images").mkdir(parents=True)
        for name in ("bootstrap", "packages.txt"):
            shutil.copy(source_root() / "images" / name, self.root / "images" / name)
        (self.root / "pyproject.toml").write_text("[project]\n")
        self.python()
        for program in PROGRAMS:
            self.program(program)
        self.installed(*LIBRARIES)

    def program(self, name: str, body: str = "") -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.log}\n{body}\n')
        path.chmod(0o755)

    def python(self, *, venv: str = ":", pip: str = ":") -> None:
        (self.bin / "python3").write_text(PYTHON.format(log=self.log, bin=self.bin, venv=venv, pip=pip))
        (self.bin / "python3").chmod(0o755)

    def installed(self, *packages: str) -> None:
        rows = "".join(f"echo installed={name}\n" for name in packages)
        self.program("dpkg-query", rows)

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        with self.start(*argv) as process:
            out, err = process.communicate(timeout=20)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.root / "images/bootstrap", *argv],
            env={"PATH": str(self.bin), "HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def calls(self, name: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if name in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_command_it_explains_itself(machine: Machine) -> None:
    for argv in ([], ["--help"]):
        done = machine.run(*argv)
        assert done.returncode == 0
        assert done.stdout.startswith("usage: images/bootstrap CMD")
    assert not (machine.root / ".venv").exists()


def test_it_becomes_the_command(machine: Machine) -> None:
    machine.program("show", 'printf "<%s>" "$@"; echo "$VIRTUAL_ENV"; exit 7')
    done = machine.run("show", "two words", "$HOME", "")
    assert done.returncode == 7
    assert done.stdout == f"<two words><$HOME><>{machine.root}/.venv\n"


def test_the_environments_commands_come_first(machine: Machine) -> None:
    machine.run("true")
    tool = machine.root / ".venv/bin/true"
    tool.write_text("#!/bin/sh\necho ours\n")
    tool.chmod(0o755)
    assert machine.run("true").stdout == "ours\n"


def test_the_second_time_nothing_is_installed_or_said(machine: Machine) -> None:
    first = machine.run("true")
    assert first.returncode == 0
    assert "making a virtual environment" in first.stderr
    assert len(machine.calls("-m pip")) == 1
    assert f"--editable {machine.root}[test]" in machine.calls("-m pip")[0]
    machine.log.unlink()
    machine.program("apt-get", "exit 1")
    second = machine.run("true")
    assert (second.returncode, second.stderr) == (0, "")
    assert machine.calls("apt-get") == machine.calls("-m pip") == machine.calls("-m venv") == []
    assert machine.calls("ensurepip") == []  # no search for a Python either
    assert len(machine.calls("dpkg-query")) == 1


@pytest.mark.parametrize("name", ["pyproject.toml", "images/packages.txt"])
def test_a_changed_list_installs_again(machine: Machine, name: str) -> None:
    machine.run("true")
    with (machine.root / name).open("a") as stream:
        stream.write("# changed\n")
    machine.run("true")
    assert len(machine.calls("-m pip")) == 2
    assert len(machine.calls("-m venv")) == 1


def test_an_environment_that_was_moved_is_no_good(machine: Machine, tmp_path: Path) -> None:
    machine.run("true")
    machine.root = machine.root.rename(tmp_path / "elsewhere")
    assert machine.run("true").returncode == 0
    assert len(machine.calls("-m pip")) == 2


def test_missing_packages_are_installed(machine: Machine) -> None:
    machine.program("id", "echo 0")
    (machine.bin / "make").unlink()
    machine.installed("libc6-dev", "perl")
    bring = f"touch {machine.bin}/make; chmod +x {machine.bin}/make"
    machine.program("apt-get", f'case "$*" in *install*) {bring} ;; esac')
    done = machine.run("true")
    assert done.returncode == 0
    assert "installing Debian packages: make libelf1" in done.stderr
    update, install = machine.calls("apt-get")
    assert update.endswith("update")
    assert install.endswith("install --no-install-recommends -y make libelf1")


def test_a_failed_update_alone_does_not_stop_it(machine: Machine) -> None:
    machine.program("id", "echo 0")
    machine.installed("libc6-dev", "perl")
    machine.program("apt-get", 'case "$*" in *update*) exit 100 ;; esac')
    assert machine.run("true").returncode == 0


def test_sudo_is_used_where_there_is_no_root(machine: Machine) -> None:
    machine.program("id", "echo 1000")
    machine.installed("libc6-dev", "perl")
    machine.program("sudo", '"$@"')
    machine.program("apt-get")
    assert machine.run("true").returncode == 0
    update, install = machine.calls("sudo ")
    assert update.startswith("sudo apt-get ")
    assert install.startswith("sudo env DEBIAN_FRONTEND=noninteractive apt-get ")


def test_neither_root_nor_sudo(machine: Machine) -> None:
    machine.program("id", "echo 1000")
    (machine.bin / "clang-format").unlink()
    machine.installed()
    machine.program("apt-get")
    done = machine.run("true")
    assert done.returncode == 2
    assert "apt-get update && apt-get install --no-install-recommends -y" in done.stderr
    assert done.stderr.rstrip().endswith("clang-format libc6-dev libelf1 perl")
    assert machine.calls("apt-get -q") == []
    assert not (machine.root / ".venv").exists()


def test_a_failed_installation_says_why(machine: Machine) -> None:
    machine.program("id", "echo 0")
    machine.installed("libc6-dev", "perl")
    machine.program("apt-get", 'echo "E: Unable to locate package"; exit 100')
    done = machine.run("true")
    assert done.returncode == 2
    assert "apt-get could not install: libelf1" in done.stderr
    assert "  | E: Unable to locate package" in done.stderr
    assert "apt-get install --no-install-recommends -y libelf1" in done.stderr


def test_a_failed_pip_leaves_nothing_that_looks_complete(machine: Machine) -> None:
    machine.python(pip='echo "ERROR: no such version"; exit 1')
    done = machine.run("true")
    assert done.returncode == 2
    assert "  | ERROR: no such version" in done.stderr
    assert "images/bootstrap true" in done.stderr
    assert not (machine.root / ".venv").exists()
    machine.python()
    assert machine.run("true").returncode == 0
    assert (machine.root / ".venv/iobmd-stamp").is_file()


def test_a_failed_update_of_an_environment_is_tried_again(machine: Machine) -> None:
    machine.run("true")
    (machine.root / "pyproject.toml").write_text("[project]\n# changed\n")
    shutil.copy(machine.bin / "python3", machine.root / "python-that-works")
    machine.python(pip="exit 1")
    shutil.copy(machine.bin / "python3", machine.root / ".venv/bin/python")
    assert machine.run("true").returncode == 2
    assert not (machine.root / ".venv/iobmd-stamp").exists()
    shutil.copy(machine.root / "python-that-works", machine.root / ".venv/bin/python")
    assert machine.run("true").returncode == 0


def test_a_failed_venv_says_why(machine: Machine) -> None:
    machine.python(venv="echo 'ensurepip is not available'; exit 1")
    done = machine.run("true")
    assert done.returncode == 2
    assert "  | ensurepip is not available" in done.stderr
    assert not (machine.root / ".venv").exists()


def test_a_second_one_waits_for_the_first(machine: Machine) -> None:
    with (machine.root / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with machine.start("true") as process:
            assert process.stderr is not None
            assert "another bootstrap is at work" in process.stderr.readline()
            assert process.poll() is None
            fcntl.flock(lock, fcntl.LOCK_UN)
            _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "making a virtual environment" in err


def test_the_command_does_not_inherit_the_lock(machine: Machine) -> None:
    machine.program("ls9", "[ -e /proc/self/fd/9 ] && echo inherited; exit 0")
    assert machine.run("ls9").stdout == ""


def test_a_command_that_is_not_there(machine: Machine) -> None:
    done = machine.run("no-such-command")
    assert done.returncode == 127
    assert "no command no-such-command" in done.stderr


def test_another_distribution_that_has_it_all(machine: Machine) -> None:
    (machine.bin / "dpkg-query").unlink()
    assert machine.run("true").returncode == 0


def test_another_distribution_that_lacks_something(machine: Machine) -> None:
    (machine.bin / "dpkg-query").unlink()
    (machine.bin / "qemu-system-x86_64").unlink()
    done = machine.run("true")
    assert done.returncode == 2
    assert "no apt-get" in done.stderr
    assert "qemu-system-x86" in done.stderr


def test_no_usable_python_names_debians(machine: Machine) -> None:
    (machine.bin / "python3").write_text("#!/bin/sh\nexit 1\n")
    script = machine.root / "images/bootstrap"
    script.write_text(script.read_text().replace("/usr/bin/python3 ", ""))  # the tests' own machine has one
    machine.program("id", "echo 1000")
    machine.program("apt-get")
    done = machine.run("true")
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("python3 python3-venv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_project(machine: Machine) -> None:
    machine.root.chmod(0o500)
    machine.program("show", 'echo "$VIRTUAL_ENV"')
    done = machine.run("show")
    machine.root.chmod(0o700)
    assert done.stdout.startswith(f"{machine.home}/.cache/iobmd/venv-"), done.stderr
