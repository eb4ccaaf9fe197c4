# SPDX-License-Identifier: MIT
"""The terminal report: what stands where, and that nothing gets lost in any terminal."""

import os
import re
import subprocess
import sys
from io import BytesIO, StringIO, TextIOWrapper

import pytest

from harness.contract.catalogue import catalogue
from harness.contract.model import ClauseResult, Evidence, Verdict
from harness.report import IncompleteJudgement, print_judgement, report_console


@pytest.fixture
def show(judgement, small, screen):
    def shown(width=110, what=None, **options) -> str:
        verbose = options.pop("verbose", False)
        console = screen(width, **options)
        print_judgement(what or judgement, console, verbose=verbose, catalogue=small)
        return console.file.getvalue()

    return shown


@pytest.mark.parametrize(
    ("name", "width", "verbose"),
    [("wide.txt", 110, False), ("narrow.txt", 50, False), ("verbose.txt", 110, True)],
)
def test_golden(show, golden, name, width, verbose):
    golden(name, show(width, verbose=verbose))


@pytest.mark.parametrize("width", [40, 50, 64, 80, 99, 110, 120, 200])
def test_nothing_is_cut(show, judgement, width):
    text = show(width, verbose=True)
    assert max(map(len, text.splitlines())) <= min(width, 120)
    assert not any(line != line.rstrip() for line in text.splitlines())
    for result in judgement.results:
        assert re.search(rf"^{result.clause.id}  ", text, re.MULTILINE)
        for leaf in result.evidence.pages:
            assert f"{leaf.va:#018x}" in text
            assert f"{leaf.entry:#018x}" in text
            assert f"{leaf.pa:#x}" in text
    words = set(re.findall(r"[\w-]+", text))
    assert {"second", "everywhere", "genuine", "BROKEN", "unproved", "UC-"} <= words


def test_even_an_absurd_width_loses_nothing(show, judgement):
    text = "".join(show(12, verbose=True).split())
    assert all("".join(result.clause.sentence.split()) in text for result in judgement.results)
    leaves = [leaf for result in judgement.results for leaf in result.evidence.pages]
    assert all(f"VA{leaf.va:#018x},PA{leaf.pa:#x},size" in text for leaf in leaves)


def test_a_pipe_gets_no_colour(show):
    assert "\x1b" not in show()


def test_a_terminal_gets_colour(show):
    text = show(force_terminal=True, color_system="standard")
    assert "\x1b[1;31mBROKEN" in text
    assert "\x1b[32mholds" in text


def test_without_colour_the_words_remain(show, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")  # a dumb terminal has 80 columns, whatever is asked for
    text = show(force_terminal=True, color_system="standard")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", text)
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == show()


def test_unproved_take_one_line_a_group(show):
    lines = show().splitlines()
    assert "unproved: B04" in lines
    assert not any(line.startswith(("B04 ", "C01 ", "C02 ")) for line in lines)
    # A group with nothing else in it has said so in its heading.
    assert lines[lines.index("C  Mapping: unproved 2 of 2") + 1] == ""


def test_verbose_says_why_unproved(show):
    assert re.search(
        r"^C01 +unproved +D +Mapping maps\.\n +reason +no check yet$", show(verbose=True), re.MULTILINE
    )


@pytest.mark.parametrize("verbose", [False, True])
def test_what_nobody_asked_for_is_counted_but_not_told(judgement, small, screen, verbose):
    console = screen(110)
    print_judgement(judgement, console, verbose=verbose, asked={"A01", "A02"}, catalogue=small)
    text = console.file.getvalue()
    assert re.search(r"^A01 ", text, re.MULTILINE)
    assert not re.search(r"^(A0[3-9]|[B-Z]\d\d) ", text, re.MULTILINE)
    assert re.search(r"^not asked for: A03", text, re.MULTILINE)
    assert re.search(r"^not asked for: groups B C", text, re.MULTILINE)
    assert f"of {len(small)}" in text


def test_a_reader_that_leaves_early_does_not_change_the_exit_code():
    script = (
        "import sys; from harness.report import report_console; console = report_console()\n"
        "for _ in range(3): console.print('x' * 9999)\n"
        "sys.exit(7)"
    )
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (7, b"")


def test_a_missing_reason_is_not_hidden(show, judgement, replace):
    assert "none was given" in show(what=replace(judgement, "A03", reason=""))


def test_long_evidence_is_a_sample_unless_verbose(show, judgement):
    last = f"{judgement.results[4].evidence.pages[-1].va:#018x}"
    assert "and 4 more page-table leaves; -v shows all of them" in show()
    assert last not in show()
    assert "more page-table leaves" not in show(verbose=True)
    assert last in show(verbose=True)


def test_many_ranges_are_a_sample_too(show, judgement, replace):
    ranges = tuple((number << 12, 4096) for number in range(1, 21))
    text = show(what=replace(judgement, "A02", evidence=Evidence(ranges=ranges)))
    assert "and 12 more ranges; -v shows all of them" in text


def test_closing(show):
    closing = show().split("\n\n")[-1].splitlines()
    assert closing[0] == "holds 3, broken 2, not applicable 1, unproved 3 of 9"
    assert closing[1] == "broken    A02 B02"
    assert closing[-1] == "judged    attributes are judged, not caching behaviour: TCG models no caches"


def test_closing_when_all_is_well(show, judgement, replace):
    fine = replace(judgement, "A02", verdict=Verdict.HOLDS)
    fine = replace(fine, "B02", verdict=Verdict.HOLDS)
    closing = show(what=replace(fine, oracle_milliseconds=())).split("\n\n")[-1].splitlines()
    assert closing[0].startswith("holds 5, broken 0")
    assert closing[1].startswith("evidence")
    assert "oracle    not asked" in closing


def test_under_kvm_tcg_is_not_blamed(show, judgement, replace):
    provenance = replace(judgement.provenance, accelerator="kvm", accelerator_reason="", kernel="custom")
    text = show(what=replace(judgement, provenance=provenance))
    assert "not caching behaviour\n" in text
    assert "accelerator kvm\n" in text
    assert "(no recipe)" in text


def test_a_guest_cannot_write_to_the_terminal(show, judgement, replace):
    text = show(what=replace(judgement, "A02", observed="a\x1b[2Jb\rc [red]d[/red] \x9b0m"))
    assert "a\\x1b[2Jb\\rc [red]d[/red] \\x9b0m" in text


def test_a_terminal_without_unicode_is_no_reason_to_fail(judgement, small, replace):
    raw = BytesIO()
    console = report_console(TextIOWrapper(raw, encoding="ascii", write_through=True))
    print_judgement(replace(judgement, "A02", observed="3 \u2192 4"), console, catalogue=small)
    assert b"3 \\u2192 4" in raw.getvalue()


def test_width_of_a_pipe(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert report_console(StringIO()).width == 110
    monkeypatch.setenv("COLUMNS", "64")
    assert report_console(StringIO()).width == 64


def test_the_default_is_standard_output_and_the_shipped_catalogue(judgement, replace, capsys):
    results = tuple(ClauseResult(clause, Verdict.UNPROVED, "no check yet") for clause in catalogue().values())
    print_judgement(replace(judgement, results=results))
    lines = capsys.readouterr().out.splitlines()
    assert "holds 0, broken 0, not applicable 0, unproved 173 of 173" in lines
    assert len(lines) < 45


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda results: results[:4] + results[5:], "absent: B02"),
        (lambda results: results[:2] + results[:1] + results[2:], "repeated: A01"),
        (lambda results: (results[1], results[0], *results[2:]), "the clauses are out of order"),
        (lambda _: (), "absent: A01 A02 A03 B01 B02 B03 B04 C01 C02"),
    ],
)
def test_no_clause_is_silently_absent(show, judgement, replace, spoil, fault):
    with pytest.raises(IncompleteJudgement) as caught:
        show(what=replace(judgement, results=spoil(judgement.results)))
    assert fault in caught.value.evidence


def test_a_foreign_clause_is_refused(show, judgement, replace):
    stranger = ClauseResult(replace(judgement.results[0].clause, id="Z01"), Verdict.HOLDS)
    with pytest.raises(IncompleteJudgement, match="not in the catalogue: Z01"):
        show(what=replace(judgement, results=(*judgement.results, stranger)))
