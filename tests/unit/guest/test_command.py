# SPDX-License-Identifier: MIT
"""The parent of a command over SSH: it tells of the end, and waits for its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest


@pytest.fixture
def start(agent_build):
    started = []

    def start(text):
        argv = [agent_build.binary, "--command", "MARK", "--", "/bin/sh", "-c", text]
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until_mark(process):
    data = b""
    while not data.endswith(b"."):
        byte = os.read(process.stdout.fileno(), 1)
        assert byte
        data += byte
    return data


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exit 0", b"MARK0."),
        ("echo out; exit 42", b"out\nMARK42."),
        ("printf x; kill -9 $$", b"xMARK137."),
        ("read line; echo $line; nothing-of-that-name", b"asked\nMARK127."),
    ],
)
def test_it_says_how_the_command_ended_and_stays(start, text, said):
    process = start(text)
    process.stdin.write(b"asked\n")
    process.stdin.flush()
    assert until_mark(process) == said
    assert process.poll() is None
    process.kill()
    assert process.wait(5) == -signal.SIGKILL
    assert process.stdout.read() == b""


def test_a_command_ends_with_its_parent(start):
    process = start("echo $$.; exec sleep 100")
    pid = int(until_mark(process)[:-1])
    process.kill()
    process.wait(5)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/cmdline").is_file() and b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("words", [["--command", "M"], ["--command", "M", "--"], ["--command"], ["--"]])
def test_words_that_make_no_sense(agent_build, words):
    done = subprocess.run([agent_build.binary, *words], capture_output=True, timeout=10, check=False)
    assert done.returncode == 2
    assert b"usage" in done.stderr
