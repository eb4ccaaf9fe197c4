# SPDX-License-Identifier: MIT
"""The clauses as data: reads ``catalogue.toml``, refuses a damaged one, finds clauses by name."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

from harness.contract.model import Clause, Kind
from harness.errors import BadInput, FailureKind, HarnessError

_RESOURCE: Final = "catalogue.toml"
_COUNTS: Final = MappingProxyType(
    {"A": 19, "B": 11, "C": 15, "D": 21, "E": 19, "F": 17, "G": 20, "H": 15, "I": 10, "J": 11, "K": 15}
)
_CLAUSE_KEYS: Final = frozenset({"kind", "sentence", "source", "observable"})
_CHOICE_KEYS: Final = frozenset({"decision", "implementation"})


class CatalogueDamaged(HarnessError):
    """The catalogue shipped with the package does not pass its own checks; the findings are the evidence."""

    kind = FailureKind.HARNESS_BUG


class UnknownClause(BadInput, KeyError):
    """No clause or group has this name.

    It is a `KeyError` too, so that `Catalogue` is an honest mapping: ``in`` and ``get`` behave as for a dict.
    """


class Catalogue(Mapping[str, Clause]):
    """Every clause by id, in report order.

    Attributes:
        groups: letter to title, in order.
        implementation: the release of Apple's sources that file:line in `Clause.source` refer to.
    """

    def __init__(
        self, clauses: Iterable[Clause], groups: Mapping[str, str], *, implementation: str = ""
    ) -> None:
        self._clauses = {clause.id: clause for clause in clauses}
        self.groups: Mapping[str, str] = MappingProxyType(dict(groups))
        self.implementation = implementation

    def __getitem__(self, name: str) -> Clause:
        try:
            return self._clauses[name]
        except KeyError:
            raise self._unknown(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._clauses)

    def __len__(self) -> int:
        return len(self._clauses)

    def in_group(self, letter: str) -> tuple[Clause, ...]:
        """Return the clauses of group *letter*, in order.

        Raises:
            UnknownClause: there is no such group.
        """
        if letter not in self.groups:
            raise self._unknown(letter)
        return tuple(clause for clause in self.values() if clause.group == letter)

    def select(self, *names: str) -> tuple[Clause, ...]:
        """Return the clauses that *names* mean, each once, in catalogue order.

        Args:
            names: ids (``"C08"``) and group letters (``"C"``), any case, any order; none means every clause.

        Raises:
            UnknownClause: a name is neither; the hint says which one may be meant.
        """
        if not names:
            return tuple(self.values())
        wanted: set[str] = set()
        for name in names:
            key = name.strip().upper()
            if key in self.groups:
                wanted.update(clause.id for clause in self.in_group(key))
            elif key in self._clauses:
                wanted.add(key)
            else:
                raise self._unknown(name)
        return tuple(clause for clause in self.values() if clause.id in wanted)

    def decided(self) -> tuple[Clause, ...]:
        """Return the clauses where documentation and implementation part and one side was chosen."""
        return tuple(clause for clause in self.values() if clause.decision)

    def _unknown(self, name: str) -> UnknownClause:
        return UnknownClause(f"no clause or group is called {name!r}", hint=self._did_you_mean(name))

    def _did_you_mean(self, name: str) -> str:
        key = name.strip().upper()
        spelled = re.fullmatch(r"([A-Z])[\s_.-]*0*(\d+)", key)
        if spelled and (padded := f"{spelled[1]}{int(spelled[2]):02}") in self._clauses:
            return f"did you mean {padded}?"
        if spelled and spelled[1] in self.groups:
            ids = [clause.id for clause in self.in_group(spelled[1])]
            return f"group {spelled[1]} ({self.groups[spelled[1]]}) goes from {ids[0]} to {ids[-1]}"
        words = {
            word: letter
            for letter, title in self.groups.items()
            for word in re.findall(r"\w{4,}", title.upper())
        }
        if not spelled and (near := difflib.get_close_matches(key, words, n=3)):
            meant = dict.fromkeys(words[word] for word in near)
            return f"did you mean {' or '.join(f'{letter} ({self.groups[letter]})' for letter in meant)}?"
        letters = "; ".join(f"{letter} {title}" for letter, title in self.groups.items())
        return f"a clause is a letter and two digits, as C08; the groups are: {letters}"


@cache
def catalogue() -> Catalogue:
    """Return the catalogue this package ships, read and checked once per process.

    Raises:
        CatalogueDamaged: the file is missing, is no TOML, or fails a check; the evidence has every finding.
    """
    try:
        text = files("harness.contract").joinpath(_RESOURCE).read_text(encoding="utf-8")
    except OSError as error:
        raise CatalogueDamaged(
            f"the catalogue of clauses cannot be read: {error.strerror}",
            tried=f"reading {_RESOURCE} beside harness.contract",
            hint="reinstall the package",
        ) from error
    return parse_catalogue(text)


def parse_catalogue(text: str, counts: Mapping[str, int] = _COUNTS) -> Catalogue:
    """Build a catalogue from TOML, or say everything that is wrong with it.

    Args:
        text: the content of a ``catalogue.toml``.
        counts: how many clauses each group has, in order; the default is the shipped catalogue's, 173 in all.

    Raises:
        CatalogueDamaged: no TOML (a repeated id is refused there), or a finding; the evidence has them all.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueDamaged("the catalogue of clauses is no TOML", observed=str(error)) from error
    groups, clauses = _table(data, "group"), _table(data, "clause")
    findings = [
        *_top_findings(data),
        *_order_findings(list(groups), list(clauses), counts),
        *(finding for letter, entry in groups.items() for finding in _group_findings(letter, entry)),
        *(finding for name, entry in clauses.items() for finding in _clause_findings(name, entry)),
    ]
    if findings:
        raise CatalogueDamaged(f"the catalogue of clauses has {len(findings)} faults", evidence=findings)
    return Catalogue(
        (
            Clause(id=name, group=name[0], **{**entry, "kind": Kind(entry["kind"])})
            for name, entry in clauses.items()
        ),
        {letter: entry["title"] for letter, entry in groups.items()},
        implementation=data["implementation"],
    )


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = data.get(key, {})
    return table if isinstance(table, Mapping) else {}


def _top_findings(data: Mapping[str, Any]) -> Iterator[str]:
    if not _is_text(data.get("implementation")):
        yield "top level: implementation must name the release that file:line refer to"
    for key in sorted(data.keys() - {"implementation", "group", "clause"}):
        yield f"top level: unknown key {key}"


def _order_findings(groups: list[str], found: list[str], counts: Mapping[str, int]) -> Iterator[str]:
    if groups != list(counts):
        yield f"groups are {' '.join(groups)}; they must be {' '.join(counts)}"
    expected = [f"{letter}{number:02}" for letter, count in counts.items() for number in range(1, count + 1)]
    missing, extra = [x for x in expected if x not in found], [x for x in found if x not in expected]
    if missing:
        yield f"clauses missing: {' '.join(missing)}"
    if extra:
        yield f"clauses that should not be: {' '.join(extra)}"
    if not missing and not extra and found != expected:
        displaced = next(have for have, want in zip(found, expected, strict=True) if have != want)
        yield f"clauses out of order, from {displaced} on"


def _group_findings(letter: str, entry: object) -> Iterator[str]:
    if not isinstance(entry, Mapping) or set(entry) != {"title"} or not _is_text(entry["title"]):
        yield f"group {letter}: must have a title, and nothing else"


def _clause_findings(name: str, entry: object) -> Iterator[str]:
    if not isinstance(entry, Mapping):
        yield f"{name}: is no table"
        return
    for key in sorted(_CLAUSE_KEYS - entry.keys()):
        yield f"{name}: has no {key}"
    for key in sorted(entry.keys() - _CLAUSE_KEYS - _CHOICE_KEYS):
        yield f"{name}: unknown key {key}"
    for key, value in entry.items():
        if not _is_text(value):
            yield f"{name}: {key} must be one line of text without space around it"
    kinds = [kind.value for kind in Kind]
    if "kind" in entry and entry["kind"] not in kinds:
        yield f"{name}: kind {entry['kind']!r} is none of {', '.join(kinds)}"
    if entry.get("kind") == Kind.CONTRADICTED.value and "decision" not in entry:
        yield f"{name}: is contradicted (X) and says no decision"
    if len(_CHOICE_KEYS & entry.keys()) == 1:
        yield f"{name}: decision and implementation only make sense together"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value == value.strip() and value.isprintable()
