# SPDX-License-Identifier: MIT
"""Debian packages through apt's own machinery, in folders of our own: nothing is installed, no root needed.

The host's configured sources, keys and proxies are used; the lists and downloads live in the cache, so a
host whose own lists are old, absent or locked makes no difference.
"""

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import BadInput, HarnessError, HostLacks
from harness.images.progress import Progress, Task
from harness.images.run import NO_SPACE_TEXTS, ProgramFailed, kill_group, need, raise_for, run, start
from harness.images.store import Store, cache_errors, no_space

UPDATE_TIMEOUT = 300.0
DOWNLOAD_TIMEOUT = 1800.0
UNPACK_TIMEOUT = 600.0
LISTS_FRESH = 3600.0
"""Seconds for which a list that was just fetched is not fetched again."""

_CONFIGURATION = """\
// The host's hooks are for the host's own lists.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State "{root}/state";
Dir::State::Lists "{root}/lists";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Log "{root}/log";
// The folder belongs to whoever runs this; apt's own user could not write here.
APT::Sandbox::User "{user}";
APT::Architecture "amd64";
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
"""

_DEPENDENCY = re.compile(r"([a-z0-9][a-z0-9+.-]*)(?::\w+)?\s*(?:\(\s*(=|<<|<=|>=|>>)\s*([^)\s]+)\s*\))?")
"""name, architecture, relation and version, as in deb-control(5)."""


@dataclass(frozen=True)
class PackageRecord:
    """One Debian package as it was used.

    Attributes:
        name: package name.
        version: Debian version.
        sha256: of the .deb, as apt's signed index states it and as it was verified.
    """

    name: str
    version: str
    sha256: str

    def as_json(self) -> dict[str, str]:
        """Return the record as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class IndexEntry:
    """One package of the index.

    Attributes:
        record: name, version and hash.
        size: of the .deb, bytes.
        depends: the first alternative of each dependency, as ``name`` or ``name=version``.
    """

    record: PackageRecord
    size: int
    depends: tuple[str, ...]


class Apt:
    """apt with private lists.

    Attributes:
        root: the folder below the cache that apt's files live in.
    """

    def __init__(self, store: Store, progress: Progress) -> None:
        self._store, self._progress = store, progress
        self.root = store.root / "apt"
        self._complaints: tuple[str, ...] = ()

    def update(self, *, force: bool = False) -> None:
        """Fetch the package lists unless they are fresh.

        A source that fails does not fail this: whether the wanted package is there is asked later.

        Raises:
            HostLacks: this host has no apt, or the cache cannot be written or is full.
        """
        with cache_errors(self.root, "making folders for apt"), self._store.lock("apt", self._progress):
            self._prepare()
            last = self._store.pointer("apt-lists") or {}
            if force or not 0 <= time.time() - float(last.get("fetched", 0)) < LISTS_FRESH:
                self._update()

    def _update(self) -> None:
        with self._progress.task("Fetching Debian's package lists"):
            done = run(
                [*self._command("apt-get"), "-q", "update"],
                doing="apt-get update",
                timeout=UPDATE_TIMEOUT,
                check=False,
            )
        lines = done.stdout.splitlines()
        self._complaints = tuple(line for line in lines if line.startswith(("Err:", "E:", "W:")))
        if not self._complaints:
            self._store.set_pointer("apt-lists", {"fetched": time.time()})
            return
        for line in self._complaints:
            if any(text in line for text in NO_SPACE_TEXTS):
                raise no_space(self._store.root, "fetching Debian's package lists", line)
        self._progress.note(f"not every package list could be fetched; apt says: {self._complaints[0]}")

    def closure(self, names: Iterable[str], follow: str) -> tuple[IndexEntry, ...]:
        """Return ``names`` and what they depend on, as far as the names match the pattern ``follow``.

        Raises:
            BadInput: the host's sources have no such package.
            HostLacks: they may have it, but could not be reached.
        """
        wanted, found = list(names), dict[str, IndexEntry]()
        pattern = re.compile(follow)
        while wanted:
            stanzas = self._show(wanted)
            missing = [item for item in wanted if item.partition("=")[0] not in stanzas]
            if missing:
                raise self._not_found(missing)
            found |= stanzas
            depends = {item for entry in stanzas.values() for item in entry.depends if pattern.match(item)}
            wanted = sorted(item for item in depends if item.partition("=")[0] not in found)
        return tuple(found[name] for name in sorted(found))

    def download(self, entries: Iterable[IndexEntry], folder: Path) -> dict[str, Path]:
        """Download packages into ``folder`` and verify them; returns the .deb of each name.

        Raises:
            HostLacks: no network, disk full, or a file whose SHA-256 is not the index's.
        """
        entries = tuple(entries)
        size = sum(entry.size for entry in entries)
        names = [f"{entry.record.name}={entry.record.version}" for entry in entries]
        title = f"Downloading {len(entries)} package{'s' if len(entries) != 1 else ''}, {size / 1e6:.0f} MB"
        with self._progress.task(title, 100.0) as task:
            try:
                self._fetch(names, folder, task)
            except ProgramFailed as failed:
                raise HostLacks(
                    "Debian packages could not be downloaded",
                    tried=failed.tried,
                    observed=failed.observed,
                    hint="this needs the network once; a kernel that is already cached needs none",
                    evidence=failed.evidence,
                ) from failed
        return {entry.record.name: _verified(folder, entry.record) for entry in entries}

    def _fetch(self, names: list[str], folder: Path, task: Task) -> None:
        reading, writing = os.pipe()
        command = self._command("apt-get")
        argv = [*command, "-q", "-o", f"APT::Status-Fd={writing}", "download", *names]
        watcher = threading.Thread(target=_watch_status, args=(reading, task), daemon=True)
        try:
            process = start(argv, cwd=folder, pass_fds=[writing])
        finally:
            os.close(writing)
            watcher.start()  # also closes the reading end
        try:
            output, _ = process.communicate(timeout=DOWNLOAD_TIMEOUT)
        except BaseException:
            kill_group(process)
            process.communicate()
            raise
        finally:
            watcher.join(timeout=5)
        raise_for(process.returncode, argv, output, doing="apt-get download", hint="")

    def _prepare(self) -> None:
        if shutil.which("apt-get") is None:
            raise HostLacks(
                "kernel recipes need Debian's apt, and this host has none",
                tried="looked for apt-get in PATH",
                hint="use Debian 12 (a container will do), or give vmlinuz, modules and headers of your own",
            )
        for name in ("state", "lists/partial", "cache/archives/partial", "log"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        user = "root" if os.geteuid() == 0 else ""
        text = _CONFIGURATION.format(root=self.root, user=user)
        configuration = self.root / "apt.conf"
        if not configuration.is_file() or configuration.read_text(encoding="utf-8") != text:
            configuration.write_text(text, encoding="utf-8")

    def _command(self, program: str) -> list[str]:
        return [need(program, "apt"), "-c", str(self.root / "apt.conf")]

    def _show(self, names: list[str]) -> dict[str, IndexEntry]:
        done = run(
            [*self._command("apt-cache"), "show", "--no-all-versions", *names],
            doing="apt-cache show",
            timeout=60,
            check=False,
        )
        return {entry.record.name: entry for entry in parse_index(done.stdout)}

    def _not_found(self, missing: list[str]) -> HarnessError:
        listed = ", ".join(missing)
        if self._complaints:
            return HostLacks(
                f"Debian's package lists could not be fetched, so nothing is known of {listed}",
                tried="apt-get update with the host's sources",
                hint="see whether the network and /etc/apt/sources.list* are right, then try again",
                evidence=self._complaints,
            )
        return BadInput(
            f"none of this host's package sources has {listed}",
            tried="apt-cache show with freshly fetched lists",
            hint="recipes name packages of Debian 12 (bookworm and bookworm-security): add those sources to "
            "/etc/apt/sources.list.d, or give vmlinuz, modules and headers of your own",
        )


def parse_index(text: str) -> tuple[IndexEntry, ...]:
    """Read what ``apt-cache show`` prints (deb-control(5) paragraphs)."""
    entries = []
    for paragraph in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", paragraph, re.MULTILINE))
        if {"Package", "Version", "SHA256", "Size"} <= fields.keys():
            record = PackageRecord(fields["Package"], fields["Version"], fields["SHA256"])
            both = ", ".join(fields[name] for name in ("Pre-Depends", "Depends") if name in fields)
            entries.append(IndexEntry(record, int(fields["Size"]), parse_depends(both)))
    return tuple(entries)


def parse_depends(text: str) -> tuple[str, ...]:
    """Return the first alternative of each dependency, with its version where exactly one will do."""
    found = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = _DEPENDENCY.match(item)
        if match:
            name, relation, version = match.groups()
            found.append(f"{name}={version}" if relation == "=" else name)
    return tuple(found)


def unpack(deb: Path, folder: Path) -> None:
    """Unpack a .deb's files below ``folder``; no maintainer script runs.

    Raises:
        ProgramFailed: dpkg-deb could not.
        HostLacks: no dpkg-deb, or the disk is full.
    """
    argv = [need("dpkg-deb", "dpkg"), "--extract", str(deb), str(folder)]
    run(argv, doing=f"unpacking {deb.name}", timeout=UNPACK_TIMEOUT, cwd=folder)


def records_from_json(rows: Iterable[Mapping[str, Any]]) -> tuple[PackageRecord, ...]:
    """Read a manifest's package rows."""
    return tuple(PackageRecord(str(r["name"]), str(r["version"]), str(r["sha256"])) for r in rows)


def _verified(folder: Path, record: PackageRecord) -> Path:
    candidates = sorted(folder.glob(f"{record.name}_*.deb"))
    if len(candidates) != 1:
        raise HostLacks(
            f"apt-get download left {len(candidates)} files for {record.name}",
            observed=", ".join(path.name for path in candidates) or "none",
            hint="try again",
        )
    with candidates[0].open("rb") as stream:
        observed = hashlib.file_digest(stream, "sha256").hexdigest()
    if observed != record.sha256:
        raise HostLacks(
            f"the download of {record.name} {record.version} is damaged",
            tried=f"expected SHA-256 {record.sha256}, from apt's index",
            observed=f"SHA-256 {observed}",
            hint="try again; if it stays so, something between here and the mirror changes files",
        )
    return candidates[0]


def _watch_status(descriptor: int, task: Task) -> None:
    """Follow apt's progress lines (README.progress-reporting: ``dlstatus:item:percent:text``)."""
    done = 0.0
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            fields = line.split(":", 3)
            if fields[0] == "dlstatus" and len(fields) == 4:
                percent = float(fields[2])
                task.advance(max(0.0, percent - done))
                done = max(done, percent)
