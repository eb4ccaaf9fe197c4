# SPDX-License-Identifier: MIT
"""The doctor finds what is missing and says what to type."""

import io

import pytest
from rich.console import Console

from harness import doctor
from harness.doctor import Finding


@pytest.fixture
def host(monkeypatch):
    findings = [Finding("gcc", True, "/usr/bin/gcc"), Finding("kernel", None, "not cached yet")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(findings))
    return findings


def report():
    out = io.StringIO()
    return doctor.run(Console(file=out, width=100)), out.getvalue()


@pytest.mark.usefixtures("host")
def test_a_host_with_everything_is_ready():
    code, text = report()
    assert code == 0
    assert "ready: iobmd check" in text


def test_a_missing_thing_exits_2_with_its_remedy(host):
    host.append(Finding("make", False, "not found", "apt-get install make"))
    code, text = report()
    assert code == 2
    assert "type: apt-get install make" in text
    assert "1 missing" in text


def test_a_program_that_is_not_in_the_path_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "cache"))
    found = {finding.name: finding for finding in doctor.examine()}
    for name, package in (("gcc-12", "gcc-12"), ("setpriv", "util-linux"), ("apt-get", "apt")):
        assert found[name].ok is False
        assert package in found[name].hint
    assert found["QEMU"].ok is False


def test_a_cache_that_cannot_be_one_does_not_end_the_examination(monkeypatch, tmp_path):
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "my cache"))
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["cache"].ok is False
    assert "white space" in found["cache"].text
    assert found["debian-6.12"].text.startswith("not cached yet")


def test_every_recipe_is_listed_with_its_state(monkeypatch, tmp_path):
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path))
    found = {finding.name: finding.text for finding in doctor.examine()}
    assert found["debian-6.1-cloud"].startswith("not cached yet")
    assert "debian-6.12" in found
    assert found["snapshots"].startswith("none yet")


def test_snapshots_are_counted(monkeypatch, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
        (tmp_path / "snapshots" / name / "ram").write_bytes(bytes(1 << 20))
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path))
    found = {finding.name: finding.text for finding in doctor.examine()}
    assert found["snapshots"].startswith("2 of guests that have booted, 2 MiB")


def test_a_small_disk_is_missing_space(monkeypatch, tmp_path):
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})())
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["cache"].ok is False
    assert "IOBMD_CACHE" in found["cache"].hint
