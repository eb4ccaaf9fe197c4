# SPDX-License-Identifier: MIT
"""The texts of the rules, and the gallery that has to break each of them."""

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RULES = tomllib.loads((ROOT / "harness" / "audit" / "rules.toml").read_text(encoding="utf-8"))
NAMES = ("set_memory", "vmalloc", "dma_", "x86")  # a sentence may begin with one
KEYS = {"sentence", "why", "read", "observed"}


def _drivers_module():
    if "audit_drivers" not in sys.modules:
        source = ROOT / "tests" / "audit" / "drivers.py"
        spec = importlib.util.spec_from_file_location("audit_drivers", source)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return sys.modules["audit_drivers"]


MARKS = _drivers_module()
DRIVERS = MARKS.drivers()


def test_nothing_but_rules():
    assert set(RULES) == {"rule"}


@pytest.mark.parametrize("name", RULES["rule"])
def test_a_rule_says_all_there_is_to_say(name):
    rule = RULES["rule"][name]
    assert set(rule) >= KEYS
    assert set(rule) <= KEYS | {"limits", "points"}
    assert rule["observed"] in {"ledger", "oracle", "both", "log"}
    for key, text in rule.items():
        assert text == text.strip()
        assert text.isprintable()
        if key in {"sentence", "why", "limits"}:
            assert text[0].isupper() or text.startswith(NAMES), key
            assert text.endswith("."), key
    assert rule["read"].startswith(("Documentation/", "arch/", "kernel/", "include/"))
    assert ", " in rule["read"]  # a file and where in it


def test_every_rule_has_a_driver_that_breaks_it():
    assert {driver.rule for driver in DRIVERS if driver.rule} == set(RULES["rule"])


def test_enough_of_both():
    assert sum(bool(driver.rule) for driver in DRIVERS) >= 25
    assert sum(bool(driver.twin_of) for driver in DRIVERS) >= 10


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)
def test_a_driver_is_what_it_says(driver):
    assert set(driver.twin_of) <= set(RULES["rule"])
    source = (driver.folder / f"{driver.name}.c").read_text()
    assert source.startswith("// SPDX-License-Identifier: GPL-2.0\n")
    assert (driver.folder / "Kbuild").read_text().splitlines()[1:] == [f"obj-m := {driver.name}.o"]
    assert {path.name for path in driver.folder.iterdir()} == {"Kbuild", f"{driver.name}.c"}
    if driver.rule:
        assert f"/* FAULT: {driver.rule} */" in source.splitlines()[driver.line - 1]


@pytest.mark.skipif(shutil.which("clang-format") is None, reason="clang-format is not installed")
def test_clang_format_has_nothing_to_say():
    files = [str(driver.folder / f"{driver.name}.c") for driver in DRIVERS]
    argv = ["clang-format", "--dry-run", "-Werror", "--style=file", *files]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


HEAD = ["// SPDX-License-Identifier: GPL-2.0", "/* It does a thing. */"]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (["int x;"], "0 faults and 0 rules"),
        (["f(); /* FAULT: a-b */", "g(); /* FAULT: a-b */"], "2 faults"),
        (["/* TWIN: a-b */", "g(); /* FAULT: a-b */"], "1 faults and 1 rules"),
        (["f(); /* FAULT:a-b */"], ":3: no mark"),
        (["/* FAULT: a-b */"], ":3: no mark"),
        (["f(a, /* FAULT: a-b */", "  b);"], ":3: no mark"),
        (["f(); /* FAULT: a-b */ // why"], ":3: no mark"),
        (["f(); /* FAULT: A_B */"], ":3: no mark"),
        (["\t/* TWIN: a-b */"], ":3: no mark"),
        (["/* NEEDS: luck */", "f(); /* FAULT: a-b */"], "nobody has luck"),
    ],
)
def test_marks_that_break_the_grammar(tmp_path, body, complaint):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "odd.c").write_text("\n".join([*HEAD, *body]) + "\n")
    with pytest.raises(MARKS.BadMarks, match=complaint):
        MARKS.read(folder)


def test_a_driver_has_to_say_what_it_does(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "odd.c").write_text("\n".join([HEAD[0], "#include <a.h>", "f(); /* FAULT: a-b */"]) + "\n")
    with pytest.raises(MARKS.BadMarks, match="sentence"):
        MARKS.read(folder)


def test_marks_are_read(tmp_path):
    folder = tmp_path / "good"
    folder.mkdir()
    lines = [*HEAD, "/* TWIN: a-b, c */", "/* TWIN: d */", "/* NEEDS: edu iommu */", "int x;"]
    (folder / "good.c").write_text("\n".join(lines) + "\n")
    driver = MARKS.read(folder)
    assert driver.twin_of == ("a-b", "c", "d")
    assert driver.needs == {"edu", "iommu"}
    assert driver.machine == "iommu"
    assert (driver.rule, driver.line, driver.about) == ("", 0, "It does a thing.")
