# SPDX-License-Identifier: MIT
"""What a path or a name means, and how it is told when it means nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.audit import Origin, kind_of, resolve, sources
from harness.errors import BadInput
from harness.images import BuildFailed, Kernel, ModuleBuild, SilentProgress
from harness.images.build import module_names

RELEASE = "6.1.0-mine"


def module(folder, name, *, depends="", debug=False, release=RELEASE):
    """A file that is a kernel module as far as its .modinfo goes."""
    said = {"name": name, "depends": depends, "vermagic": f"{release} SMP mod_unload"}
    text = "".join(f'.asciz "{key}={value}"\n' for key, value in said.items())
    file = folder / f"{name}.ko"
    source = f'.section .modinfo,"a"\n{text}' + (".section .debug_info\n.long 0\n" if debug else "")
    argv = ["gcc", "-c", "-x", "assembler", "-o", str(file), "-"]
    subprocess.run(argv, input=source, text=True, check=True)
    return file


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    modules, headers = tmp_path / "lib" / "modules" / RELEASE, tmp_path / "headers"
    folder = modules / "kernel"
    folder.mkdir(parents=True)
    headers.mkdir()
    module(folder, "libahci", depends="libata")
    module(folder, "libata")
    module(folder, "ahci", depends="libahci,libata")
    module(folder, "sd_mod")
    rows = ["kernel/ahci.ko: kernel/libahci.ko kernel/libata.ko", "kernel/libahci.ko: kernel/libata.ko"]
    rows += ["kernel/libata.ko:", "kernel/sd_mod.ko:"]
    (modules / "modules.dep").write_text("\n".join(rows) + "\n")
    (modules / "modules.builtin").write_text("kernel/drivers/nvme/host/nvme.ko\n")
    (headers / "Module.symvers").write_text("")
    monkeypatch.setattr(sources, "cached_kernels", lambda: ())
    nothing = Path()
    return Kernel("mine", RELEASE, nothing, nothing, "", modules, headers, ())


@pytest.fixture
def builds(monkeypatch):
    """Say which modules any folder builds."""

    def said(*names):
        monkeypatch.setattr(sources, "module_names", lambda *_: names)

    return said


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "ring"
    found.mkdir()
    (found / "Kbuild").write_text("obj-m := ring.o\n")
    return found


def found(path, kernel, **options):
    return resolve(str(path), kernel, SilentProgress(), **options)


def test_what_a_path_means(folder, tmp_path):
    (tmp_path / "ring.ko").touch()
    (tmp_path / "old.ko.xz").touch()
    assert kind_of(str(folder)) is Origin.FOLDER
    assert kind_of(str(tmp_path / "ring.ko")) is kind_of(str(tmp_path / "old.ko.xz")) is Origin.FILE
    assert kind_of("e1000e") is kind_of("8250_pci") is kind_of("snd-hda-intel") is Origin.TREE


@pytest.mark.parametrize(
    ("path", "words", "hint"),
    [
        ("./gone", "there is no ./gone", "a folder, a .ko file or a module"),
        ("gone.ko", "there is no gone.ko", "a folder"),
        ("empty", "empty has no Kbuild and no Makefile", "obj-m := NAME.o in empty/Kbuild"),
        ("ring.c", "ring.c is no folder and no .ko file", "named by their folder"),
        ("no such", "is no module's name", "e1000e"),
    ],
)
def test_what_means_nothing_is_said_at_once(path, words, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "ring.c").touch()
    with pytest.raises(BadInput, match=words) as caught:
        kind_of(path)
    assert hint in caught.value.hint


def test_a_module_of_the_kernels_own_comes_with_what_it_needs(kernel):
    subject = found("ahci", kernel)
    assert (subject.name, subject.describe()) == ("ahci", "the kernel's own ahci")
    assert [one.name for one in subject.modules] == ["libata", "libahci", "ahci"]
    assert subject.module.debug is None
    assert subject.module.read().startswith(b"\x7fELF")


def test_what_it_does_not_name_can_be_asked_for(kernel):
    assert [one.name for one in found("ahci", kernel, also=["sd_mod"]).needs] == [
        "sd_mod",
        "libata",
        "libahci",
    ]
    with pytest.raises(BadInput, match="has no module sr_mod"):
        found("ahci", kernel, also=["sr_mod"])


def test_one_that_is_built_in_cannot_be_watched_from_its_beginning(kernel):
    with pytest.raises(BadInput, match=r"built into the kernel 6\.1\.0-mine"):
        found("nvme", kernel)


def test_one_that_is_not_there_is_told_with_the_nearest(kernel):
    with pytest.raises(BadInput, match="no module libahcy; did you mean libahci") as caught:
        found("libahcy", kernel)
    assert "debian-6.1" in caught.value.hint


def test_another_kernel_that_has_it_is_named(kernel, monkeypatch, tmp_path):
    other = tmp_path / "other"
    (other / "lib/modules/6.12.0/kernel").mkdir(parents=True)
    module(other / "lib/modules/6.12.0/kernel", "e1000e", release="6.12.0")
    (other / "lib/modules/6.12.0/modules.order").write_text("kernel/e1000e.ko\n")
    (other / "lib/modules/6.12.0/modules.builtin").write_text("")
    cached = sources.cached_kernels
    from harness.images import CachedKernel

    kernels = (CachedKernel("debian-6.12", "6.12.0", "1", other, 0.0), *cached())
    monkeypatch.setattr(sources, "cached_kernels", lambda: kernels)
    with pytest.raises(BadInput) as caught:
        found("e1000e", kernel)
    assert caught.value.hint == "debian-6.12 has it as a module: --kernel debian-6.12"


def test_a_file_for_another_kernel_is_refused_with_both_names(kernel, tmp_path, monkeypatch):
    from harness.images import CachedKernel

    file = module(tmp_path, "ring", release="6.12.0")
    cached = (CachedKernel("debian-6.12", "6.12.0", "1", tmp_path, 0.0),)
    monkeypatch.setattr(sources, "cached_kernels", lambda: cached)
    with pytest.raises(BadInput, match=r"built for another kernel than 6\.1\.0-mine") as caught:
        found(file, kernel)
    assert "6.12.0" in caught.value.observed
    assert "--kernel debian-6.12" in caught.value.hint


@pytest.mark.parametrize("debug", [True, False])
def test_a_file_has_lines_or_not(kernel, tmp_path, debug):
    subject = found(module(tmp_path, "ring", debug=debug, depends="libahci"), kernel)
    assert (subject.module.debug is not None) == debug
    assert [one.name for one in subject.needs] == ["libata", "libahci"]
    assert subject.describe().startswith("the file ")


def test_a_folder_is_built(kernel, folder, monkeypatch, tmp_path):
    ko = module(tmp_path, "ring")
    asked = []

    def build(kernel, source, progress, names):  # noqa: ARG001
        asked.append((source, *names))
        return dict.fromkeys(names, ModuleBuild(ko, ko, "0123", tmp_path / "build.log"))

    monkeypatch.setattr(sources, "build_modules", build)
    subject = found(folder, kernel)
    assert asked == [(folder, "ring")]
    assert (subject.name, subject.folder, subject.module.debug) == ("ring", folder, ko)
    assert subject.describe() == f"built from {folder}"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("obj-m := ring.o\n", ("ring",)),
        ("obj-m += one.o\nobj-m += two.o\n", ("one", "two")),
        ("obj-$(CONFIG_RING) += ring.o\nobj-$(CONFIG_NOT) += not.o\n", ("ring",)),
        ("ring-y := a.o b.o\nobj-m := ring.o\n", ("ring",)),
        ("ifneq ($(KERNELRELEASE),)\nobj-m := ring.o\nelse\nall:\n\tfalse\nendif\n", ("ring",)),
        ("obj-y := nothing.o\n", ()),
    ],
)
def test_make_says_what_a_folder_builds(kernel, folder, text, names):
    config = kernel.headers / "include" / "config"
    config.mkdir(parents=True)
    (config / "auto.conf").write_text("CONFIG_RING=m\n")
    (folder / "Kbuild").write_text(text)
    assert module_names(kernel, folder) == names


def test_kbuild_comes_before_a_makefile(kernel, folder):
    (folder / "Makefile").write_text("obj-m := other.o\n")
    assert module_names(kernel, folder) == ("ring",)
    (folder / "Kbuild").unlink()
    assert module_names(kernel, folder) == ("other",)


def test_a_kbuild_that_make_cannot_read(kernel, folder):
    (folder / "Kbuild").write_text("ifeq\n")
    with pytest.raises(BuildFailed) as caught:
        module_names(kernel, folder)
    assert any("Kbuild:1" in one for one in caught.value.evidence)


def test_what_is_built_beside_it_is_loaded_before_it(kernel, folder, builds, monkeypatch, tmp_path):
    depends = {"ring": "core,libahci", "core": "base", "base": "sd_mod", "other": ""}
    builds(*depends)
    kos = {name: module(tmp_path, name, depends=needed) for name, needed in depends.items()}
    made = {name: ModuleBuild(ko, ko, "0123", tmp_path / "build.log") for name, ko in kos.items()}
    monkeypatch.setattr(sources, "build_modules", lambda *_: made)
    assert [one.name for one in found(folder, kernel).modules] == [
        *("sd_mod", "libata", "libahci"),
        *("base", "core", "ring"),
    ]


@pytest.mark.parametrize(
    "case",
    [
        (("one", "two"), "", "builds several modules"),
        (("one", "two"), "three", "builds no module three"),
        ((), "", "builds no module"),
    ],
)
def test_a_folder_of_which_no_module_is_meant(kernel, folder, builds, case):
    names, wanted, words = case
    builds(*names)
    with pytest.raises(BadInput, match=words):
        found(folder, kernel, module=wanted)


@pytest.mark.parametrize(
    "case",
    [(("other",), "", "other"), (("a", "ring"), "", "ring"), (("a", "b-c"), "b_c", "b-c")],
)
def test_which_of_a_folders_modules_is_meant(kernel, folder, builds, case):
    names, wanted, chosen = case
    builds(*names)
    assert sources._chosen(folder, kernel, wanted) == (names, chosen)
