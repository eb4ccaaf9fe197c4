# SPDX-License-Identifier: MIT
import subprocess
from pathlib import Path

import pytest

from harness.errors import BadInput
from harness.images.modcheck import ModuleMismatch, check_module, module_facts, read_symvers

RELEASE = "1.2.3-test"
VERMAGIC = f"{RELEASE} SMP preempt mod_unload modversions "
SOURCE = """
struct version {{ unsigned long crc; char name[56]; }};
__attribute__((section(".modinfo"), used)) static const char info[] = "vermagic={vermagic}";
__attribute__((section("__versions"), used)) static const struct version versions[] = {{
	{{ 0x11111111, "module_layout" }}, {{ {crc:#x}, "printk" }},
}};
extern int printk(void), {symbol}(void);
extern int maybe(void) __attribute__((weak));
int init_module(void) {{ return printk() + {symbol}() + (maybe ? maybe() : 0); }}
"""


def make(path: Path, *, vermagic: str = VERMAGIC, crc: int = 0x22222222, symbol: str = "printk") -> Path:
    text = SOURCE.format(vermagic=vermagic, crc=crc, symbol=symbol)
    argv = ["gcc", "-c", "-fno-pic", "-mcmodel=kernel", "-x", "c", "-", "-o", str(path)]
    subprocess.run(argv, input=text, text=True, check=True)
    return path


@pytest.fixture
def kernel(tmp_path: Path) -> tuple[Path, Path]:
    """A modules folder with one module, and headers."""
    modules, headers = tmp_path / "modules", tmp_path / "headers"
    modules.mkdir()
    headers.mkdir()
    make(modules / "sample.ko")
    (modules / "modules.order").write_text("sample.ko\n")
    (headers / "Module.symvers").write_text(
        "0x11111111\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t\n0x22222222\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n"
    )
    return modules, headers


def check(ko: Path, kernel: tuple[Path, Path]) -> None:
    check_module(ko, RELEASE, *kernel)


def test_facts(tmp_path: Path) -> None:
    facts = module_facts(make(tmp_path / "a.ko").read_bytes())
    assert facts.vermagic == VERMAGIC
    assert facts.undefined == {"printk"}
    assert facts.versions == {"module_layout": 0x11111111, "printk": 0x22222222}


def test_a_module_that_fits(tmp_path: Path, kernel: tuple[Path, Path]) -> None:
    check(make(tmp_path / "a.ko"), kernel)


@pytest.mark.parametrize(
    "vermagic", [VERMAGIC.replace("1.2.3", "1.2.4"), VERMAGIC.replace("preempt ", ""), ""]
)
def test_another_vermagic(tmp_path: Path, kernel: tuple[Path, Path], vermagic: str) -> None:
    with pytest.raises(ModuleMismatch, match="another kernel") as caught:
        check(make(tmp_path / "a.ko", vermagic=vermagic), kernel)
    assert repr(VERMAGIC) in caught.value.tried
    assert repr(vermagic) in caught.value.observed


def test_a_kernel_without_modules_tells_its_release_only(tmp_path: Path, kernel: tuple[Path, Path]) -> None:
    (kernel[0] / "modules.order").write_text("")
    check(make(tmp_path / "a.ko"), kernel)
    with pytest.raises(ModuleMismatch, match="another kernel"):
        check(make(tmp_path / "a.ko", vermagic="9.9.9 SMP "), kernel)


def test_a_symbol_that_is_not_exported(tmp_path: Path, kernel: tuple[Path, Path]) -> None:
    with pytest.raises(ModuleMismatch, match="set_memory_wt") as caught:
        check(make(tmp_path / "a.ko", symbol="set_memory_wt"), kernel)
    assert caught.value.evidence == ("set_memory_wt",)


def test_another_checksum(tmp_path: Path, kernel: tuple[Path, Path]) -> None:
    with pytest.raises(ModuleMismatch, match="other structures") as caught:
        check(make(tmp_path / "a.ko", crc=0x33333333), kernel)
    assert caught.value.observed == "printk: module 0x33333333, kernel 0x22222222"


def test_headers_without_symvers(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_symvers(tmp_path / "Module.symvers")
