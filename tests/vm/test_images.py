# SPDX-License-Identifier: MIT
"""Real kernels: downloaded, unpacked, built for.  No guest is started, but the first run takes minutes."""

from pathlib import Path

import pytest

from harness.images import (
    BuildFailed,
    Kernel,
    KernelSelector,
    ModuleMismatch,
    RichProgress,
    build_module,
    cache_root,
    cached_kernels,
    check_module,
    load_recipes,
    prepare_guest,
    prepare_kernel,
    source_root,
)
from harness.images.cpio import read_archive

PROGRESS = RichProgress()
CLOUD = "debian-6.1-cloud"


def recipe(name: str) -> Kernel:
    return prepare_kernel(KernelSelector(recipe=name), PROGRESS)


@pytest.mark.parametrize("name", load_recipes())
def test_every_recipe_gives_a_guest(name: str) -> None:
    kernel = recipe(name)
    assert kernel.boot_reason == ""
    assert kernel.boot_image.read_bytes()[:4] == b"\x7fELF"
    assert {record.name for record in kernel.packages} >= {f"linux-image-{kernel.release}"}
    assert name in {known.recipe for known in cached_kernels()}

    image = prepare_guest(kernel, PROGRESS)
    log = image.module.log.read_text()
    assert "warning" not in log.lower(), log
    files = {node.path: node.data for node in read_archive(image.initramfs.read_bytes())}
    listed = files["etc/iobmd/modules"].decode().splitlines()
    assert listed[-1] == "/lib/iobmd/iobmd.ko"
    assert all(files[line.split()[0][1:]].startswith(b"\x7fELF") for line in listed)
    assert image.layouts.struct("iobmd_create").fields["reason"].count == 160
    assert image.link_layouts.struct("link_header").size == 32


def test_a_cached_kernel_needs_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = recipe(CLOUD)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert recipe(CLOUD) == kernel


def test_the_same_files_as_a_kernel_of_ones_own() -> None:
    debian = recipe(CLOUD)
    own = KernelSelector(None, debian.vmlinuz, debian.modules, debian.headers)
    kernel = prepare_kernel(own, PROGRESS)
    assert (kernel.label, kernel.release) == ("custom", debian.release)
    assert kernel.boot_image.read_bytes() == debian.boot_image.read_bytes()
    build = build_module(kernel, source_root() / "kext_shim", PROGRESS)
    assert build.ko.read_bytes() == prepare_guest(debian, PROGRESS).module.ko.read_bytes()


def test_parts_of_two_kernels_do_not_mix() -> None:
    old, new = recipe(CLOUD), recipe("debian-6.12-cloud")
    build = build_module(old, source_root() / "kext_shim", PROGRESS)
    with pytest.raises(ModuleMismatch, match="another kernel") as caught:
        prepare_guest(new, PROGRESS, module=build)
    assert old.release in caught.value.observed
    with pytest.raises(ModuleMismatch):
        check_module(build.ko, new.release, new.modules, new.headers)


def test_a_module_has_the_same_bytes_wherever_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = recipe(CLOUD)
    here = build_module(kernel, source_root() / "kext_shim", PROGRESS)
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "elsewhere"))
    there = build_module(kernel, source_root() / "kext_shim", PROGRESS)
    assert there.ko.is_relative_to(cache_root())
    assert there.build_id == here.build_id
    assert there.ko_debug.read_bytes() == here.ko_debug.read_bytes()


def test_a_symbol_the_kernel_keeps_to_itself(tmp_path: Path) -> None:
    (tmp_path / "Kbuild").write_text("obj-m := peek.o\n")
    (tmp_path / "peek.c").write_text(
        "// SPDX-License-Identifier: GPL-2.0\n#include <linux/module.h>\n"
        "int set_memory_wt(unsigned long addr, int pages);\n"
        "static int __init peek(void)\n{\n\treturn set_memory_wt(0, 0);\n}\nmodule_init(peek);\n"
        'MODULE_DESCRIPTION("uses what is not exported");\nMODULE_LICENSE("GPL");\n'
    )
    with pytest.raises(BuildFailed, match="set_memory_wt") as caught:
        build_module(recipe(CLOUD), tmp_path, PROGRESS, name="peek")
    assert any("undefined" in line for line in caught.value.evidence)


def test_a_shell_comes_with_its_commands() -> None:
    image = prepare_guest(recipe(CLOUD), PROGRESS, with_shell=True)
    files = {node.path: node.data for node in read_archive(image.initramfs.read_bytes())}
    assert files["bin/busybox"].startswith(b"\x7fELF")
    assert files["bin/sh"] == files["bin/ls"] == b"/bin/busybox"
