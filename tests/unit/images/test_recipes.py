# SPDX-License-Identifier: MIT
import struct
from pathlib import Path

import pytest

from harness.errors import BadInput
from harness.images import (
    Kernel,
    KernelSelector,
    SilentProgress,
    cache_root,
    cached_kernels,
    default_recipe,
    find_recipe,
    load_recipes,
    prepare_kernel,
)
from harness.images.kernel import headers_release, relocate_headers

RELEASE = "5.4.3-own"

pytestmark = pytest.mark.usefixtures("cache")


def test_the_recipes() -> None:
    recipes = load_recipes()
    assert list(recipes) == [
        "debian-6.1-cloud",
        "debian-6.1",
        "debian-6.1-rt",
        "debian-6.12-cloud",
        "debian-6.12",
    ]
    assert default_recipe() == "debian-6.1-cloud"
    assert recipes["debian-6.1-rt"].image_package == "linux-image-rt-amd64"
    for recipe in recipes.values():
        assert recipe.headers_package == recipe.image_package.replace("image", "headers")


def test_an_unknown_recipe_is_answered_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"did you mean 'debian-6\.12-cloud'") as caught:
        find_recipe("debian-6.12-clod")
    assert "debian-6.1-rt" in caught.value.hint
    with pytest.raises(BadInput) as caught:
        find_recipe("zzz")
    assert caught.value.summary == "there is no kernel recipe 'zzz'"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"vmlinuz": "v"}, "modules and headers missing"),
        ({"vmlinuz": "v", "modules": "m"}, "headers missing"),
        ({"headers": "h", "modules": "m"}, "vmlinuz missing"),
    ],
)
def test_some_of_the_three_paths(paths: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        KernelSelector(**{name: Path(value) for name, value in paths.items()})
    assert caught.value.hint


def test_a_recipe_and_paths() -> None:
    with pytest.raises(BadInput, match="not both"):
        KernelSelector(recipe="debian-6.1", vmlinuz=Path("v"))


@pytest.fixture
def own(tmp_path: Path) -> KernelSelector:
    """A kernel of one's own, as far as it can be without building one."""
    image = bytearray(4096)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    struct.pack_into("<H", image, 0x20E, 0x200)
    image[0x400 : 0x400 + len(RELEASE)] = RELEASE.encode()
    (tmp_path / "bzImage").write_bytes(image)
    modules = tmp_path / "root/lib/modules" / RELEASE
    modules.mkdir(parents=True)
    (modules / "modules.builtin").write_text("")
    generated = tmp_path / "build/include/generated"
    generated.mkdir(parents=True)
    (generated / "utsrelease.h").write_text(f'#define UTS_RELEASE "{RELEASE}"\n')
    (tmp_path / "build/Module.symvers").write_text("")
    return KernelSelector(None, tmp_path / "bzImage", tmp_path / "root", tmp_path / "build")


def prepare(selector: KernelSelector) -> Kernel:
    return prepare_kernel(selector, SilentProgress())


def test_a_kernel_of_ones_own(own: KernelSelector, tmp_path: Path) -> None:
    kernel = prepare(own)
    assert (kernel.label, kernel.release, kernel.packages) == ("custom", RELEASE, ())
    assert kernel.modules == tmp_path / "root/lib/modules" / RELEASE
    assert kernel.boot_image == kernel.vmlinuz
    assert "payload" in kernel.boot_reason


def test_a_kernel_with_kasan_is_booted_as_it_was_delivered(
    own: KernelSelector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.images.kernel.uncompressed_elf", lambda _: b"\x7fELF")
    (tmp_path / "build/.config").write_text("# CONFIG_KASAN is not set\nCONFIG_KASAN_STACK=y\n")
    assert prepare(own).boot_image != own.vmlinuz
    (tmp_path / "build/.config").write_text("CONFIG_KASAN=y\n")
    kernel = prepare(own)
    assert kernel.boot_image == kernel.vmlinuz == own.vmlinuz
    assert "KASAN" in kernel.boot_reason


def test_headers_of_another_kernel(own: KernelSelector, tmp_path: Path) -> None:
    (tmp_path / "build/include/generated/utsrelease.h").write_text('#define UTS_RELEASE "5.4.4-own"\n')
    with pytest.raises(BadInput, match="headers belong to another kernel") as caught:
        prepare(own)
    assert RELEASE in caught.value.tried
    assert "5.4.4-own" in caught.value.observed


def test_modules_of_another_kernel(own: KernelSelector, tmp_path: Path) -> None:
    other = tmp_path / "root/lib/modules/5.4.4-own"
    (tmp_path / "root/lib/modules" / RELEASE).rename(other)
    with pytest.raises(BadInput, match="modules belong to another kernel"):
        prepare(KernelSelector(None, own.vmlinuz, other, own.headers))
    with pytest.raises(BadInput, match="no modules folder"):
        prepare(own)


def test_headers_of_no_use(own: KernelSelector, tmp_path: Path) -> None:
    (tmp_path / "build/Module.symvers").unlink()
    with pytest.raises(BadInput, match=r"no Module\.symvers"):
        prepare(own)
    with pytest.raises(BadInput, match="no kernel headers"):
        headers_release(tmp_path)


def test_debians_headers_are_relocated(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("include /usr/src/linux-headers-6.1.0-56-common/Makefile\n")
    (tmp_path / "vmlinux").write_text("BTF")
    relocate_headers(tmp_path)
    text = (tmp_path / "Makefile").read_text()
    assert text == "include $(dir $(lastword $(MAKEFILE_LIST)))../linux-headers-6.1.0-56-common/Makefile\n"
    assert not (tmp_path / "vmlinux").exists()
    with pytest.raises(BadInput, match="not laid out"):
        relocate_headers(tmp_path)


def test_an_empty_cache_lists_nothing(cache: Path) -> None:
    assert cached_kernels() == ()
    assert not cache.exists()


@pytest.mark.parametrize("name", ["with space", "with:colon"])
def test_a_cache_where_kbuild_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / name))
    with pytest.raises(BadInput, match="white space or a colon"):
        cache_root()


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IOBMD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "iobmd"
