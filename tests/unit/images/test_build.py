# SPDX-License-Identifier: MIT
"""Building without a kernel: a stand-in for its headers whose Makefile compiles one file."""

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from harness.errors import BadInput, HostLacks
from harness.images import (
    BuildFailed,
    CacheUnusable,
    Kernel,
    Layouts,
    ModuleMismatch,
    SilentProgress,
    build_agent,
    build_module,
    build_modules,
)

QUIET = SilentProgress()
RELEASE = "1.2.3-test"
MAKEFILE = """\
modules:
	@echo one $(KCFLAGS) > $(M)/kcflags
	gcc -g $(KCFLAGS) -c $(M)/$(NAME).c -o $(M)/$(NAME).ko
	@echo built >> $(COUNT)
"""
MODULE = """\
__attribute__((section(".modinfo"), used)) static const char info[] = "vermagic=%s";
#ifdef BROKEN
int broken(void) { return missing_variable; }
#endif
const char *where(void) { return __FILE__; }
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    headers, modules = tmp_path / "src/headers", tmp_path / "modules"
    headers.mkdir(parents=True)
    modules.mkdir()
    makefile = f"NAME ?= thing\nCOUNT := {tmp_path}/count\n{MAKEFILE}"
    (headers / "Makefile").write_text(makefile)
    (headers / "Module.symvers").write_text("")
    nothing = tmp_path / "nothing"
    return Kernel("custom", RELEASE, nothing, nothing, "", modules, headers, ())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "Kbuild").write_text("obj-m := thing.o\n")
    (folder / "thing.c").write_text(MODULE % RELEASE)
    return folder


def builds(tmp_path: Path) -> int:
    count = tmp_path / "count"
    return len(count.read_text().splitlines()) if count.exists() else 0


@pytest.mark.usefixtures("cache")
class TestModule:
    def test_same_inputs_are_built_once(self, tmp_path: Path, kernel: Kernel, source: Path) -> None:
        first = build_module(kernel, source, QUIET, name="thing")
        assert build_module(kernel, source, QUIET, name="thing") == first
        assert builds(tmp_path) == 1
        assert first.ko.stat().st_size < first.ko_debug.stat().st_size
        assert "gcc" in first.log.read_text()

    def test_what_changes_a_build(self, tmp_path: Path, kernel: Kernel, source: Path) -> None:
        seen = {build_module(kernel, source, QUIET, name="thing").build_id}
        seen.add(build_module(kernel, source, QUIET, name="thing", cflags=("-O1",)).build_id)
        (source / "more.h").write_text("/* more */")
        seen.add(build_module(kernel, source, QUIET, name="thing").build_id)
        (kernel.headers / "Module.symvers").write_text("0x0\tx\tvmlinux\tEXPORT_SYMBOL\t\n")
        seen.add(build_module(kernel, source, QUIET, name="thing").build_id)
        assert len(seen) == builds(tmp_path) == 4

    def test_products_and_hidden_files_do_not(self, tmp_path: Path, kernel: Kernel, source: Path) -> None:
        build_module(kernel, source, QUIET, name="thing")
        for name in ("thing.o", "thing.mod.c", ".thing.c.swp", "Module.symvers"):
            (source / name).write_text("left by another build")
        build_module(kernel, source, QUIET, name="thing")
        assert builds(tmp_path) == 1

    def test_nothing_is_written_to_the_source(self, kernel: Kernel, source: Path) -> None:
        build_module(kernel, source, QUIET, name="thing")
        assert sorted(path.name for path in source.iterdir()) == ["Kbuild", "thing.c"]

    def test_same_inputs_same_bytes_in_another_cache(
        self, tmp_path: Path, kernel: Kernel, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = build_module(kernel, source, QUIET, name="thing")
        monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "another-cache-with-a-longer-name"))
        second = build_module(kernel, source, QUIET, name="thing")
        assert first.ko_debug != second.ko_debug
        assert first.ko_debug.read_bytes() == second.ko_debug.read_bytes()
        assert b"thing/thing.c" in first.ko.read_bytes()

    def test_a_kernel_without_debug_information_gets_modules_with_it(
        self, kernel: Kernel, source: Path
    ) -> None:
        config = kernel.headers / "include/config/auto.conf"
        config.parent.mkdir(parents=True)
        asked = []
        for line in ("CONFIG_DEBUG_INFO=y\n", "CONFIG_DEBUG_INFO_NONE=y\n"):
            config.write_text(line)
            log = build_module(kernel, source, QUIET, name="thing").log.read_text()
            asked.append(log.split().count("-g"))  # one is the Makefile's
        assert asked == [1, 2]

    def test_the_callers_flags_stay_outside(
        self, kernel: Kernel, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MAKEFLAGS", "NAME=another")
        build_module(kernel, source, QUIET, name="thing")

    def test_the_compilers_words_are_the_evidence(self, kernel: Kernel, source: Path, cache: Path) -> None:
        with pytest.raises(BuildFailed, match=r"building thing\.ko") as caught:
            build_module(kernel, source, QUIET, name="thing", cflags=("-DBROKEN",))
        assert any(
            "missing_variable" in line and str(source / "thing.c") in line for line in caught.value.evidence
        )
        (log,) = (cache / "failed").iterdir()
        assert str(log) in caught.value.hint
        assert list((cache / "modules").iterdir()) == []

    def test_a_module_for_another_kernel_is_not_kept(self, kernel: Kernel, source: Path, cache: Path) -> None:
        (source / "thing.c").write_text(MODULE % "9.9.9")
        with pytest.raises(ModuleMismatch, match="another kernel"):
            build_module(kernel, source, QUIET, name="thing")
        assert list((cache / "modules").iterdir()) == []

    def test_another_name_than_the_kbuilds(self, kernel: Kernel, source: Path) -> None:
        (kernel.headers / "Makefile").write_text(f"NAME = thing\nCOUNT = /dev/null\n{MAKEFILE}")
        with pytest.raises(BadInput, match=r"builds no iobmd\.ko") as caught:
            build_module(kernel, source, QUIET)
        assert "thing.ko" in caught.value.observed

    def test_a_folder_without_kbuild(self, kernel: Kernel, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="no Kbuild"):
            build_module(kernel, tmp_path, QUIET)

    def test_several_by_one_make(self, tmp_path: Path, kernel: Kernel, source: Path) -> None:
        for name in ("other", "third"):
            (source / name).mkdir()
            (source / name / "Kbuild").write_text(f"obj-m := {name}.o\n")
            (source / name / f"{name}.c").write_text(MODULE % RELEASE)
        names = "thing other/other third/third"
        lines = [f"\tgcc -g $(KCFLAGS) -c $(M)/{name}.c -o $(M)/{name}.ko\n" for name in names.split()]
        (kernel.headers / "Makefile").write_text(
            f"modules:\n{''.join(lines)}\t@echo built >> {tmp_path}/count\n"
        )
        both = build_modules(kernel, source, QUIET, ["third", "thing", "third"])
        assert both == build_modules(kernel, source, QUIET, ("thing", "third"))
        assert builds(tmp_path) == 1
        assert {name: build.ko.name for name, build in both.items()} == {
            "thing": "thing.ko",
            "third": "third.ko",
        }
        assert b"module/third/third.c" in both["third"].ko_debug.read_bytes()
        (source / "other" / "more.h").write_text("")
        changed = build_modules(kernel, source, QUIET, ["thing", "third"])
        assert changed["thing"].build_id != both["thing"].build_id
        with pytest.raises(BadInput, match=r"builds no fourth\.ko") as caught:
            build_modules(kernel, source, QUIET, ["thing", "fourth"])
        assert caught.value.observed == "built: other.ko, thing.ko, third.ko"

    def test_a_compiler_that_is_not_there(self, kernel: Kernel, source: Path) -> None:
        (kernel.headers / ".kernelvariables").write_text("CC = $(CROSS_COMPILE)gcc-4711\n")
        with pytest.raises(HostLacks, match="gcc-4711 is not installed") as caught:
            build_module(kernel, source, QUIET, name="thing")
        assert "apt-get install gcc-4711" in caught.value.hint

    def test_a_disk_that_fills_up(self, kernel: Kernel, source: Path, cache: Path) -> None:
        (kernel.headers / "Makefile").write_text("modules:\n\t@echo 'x.s: No space left on device'; false\n")
        with pytest.raises(CacheUnusable, match="full") as caught:
            build_module(kernel, source, QUIET, name="thing")
        assert str(cache) in caught.value.summary


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "own_abi.h").write_text("enum own { OWN = 3 };\nstruct pair { int a; long b; };\n")
    (folder / "main.c").write_text(
        '#include "own_abi.h"\n#include "iobmd_abi.h"\nint main(void) { return OWN; }\n'
    )
    return folder


@pytest.mark.usefixtures("cache")
class TestAgent:
    def test_it_is_static_and_runs(self, agent: Path) -> None:
        built = build_agent(QUIET, agent)
        assert subprocess.run([built.binary], check=False).returncode == 3
        with built.binary.open("rb") as stream:
            segments = [segment["p_type"] for segment in ELFFile(stream).iter_segments()]
        assert "PT_INTERP" not in segments
        assert built.binary.stat().st_size < built.debug.stat().st_size
        assert build_agent(QUIET, agent) == built

    def test_its_layouts_reach_the_host_unused(self, agent: Path) -> None:
        layouts = Layouts.from_elf(build_agent(QUIET, agent).debug)
        assert layouts.struct("pair").size == 16
        assert layouts.enum("own") == {"OWN": 3}
        assert layouts.struct("iobmd_create").fields["reason"].is_bytes

    def test_a_warning_is_an_error(self, agent: Path) -> None:
        (agent / "main.c").write_text("int main(int unused) { return 0; }\n")
        with pytest.raises(BuildFailed, match="building the agent") as caught:
            build_agent(QUIET, agent)
        assert any("unused" in line for line in caught.value.evidence)

    def test_no_sources(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="no C file"):
            build_agent(QUIET, tmp_path)
