# SPDX-License-Identifier: MIT
"""QEMU's test port: attached when it is first used, and every way it can fail has a name."""

import asyncio
import os
import socket
import threading

import pytest

from harness.vm import QmpLost, QmpRefused, QmpSilent, QTest


class Qmp:
    """A machine protocol whose QEMU answers the test port's lines by a table."""

    def __init__(self, answers, scale=1.0):
        self.answers, self.scale = answers, scale
        self.commands, self.lines = [], []
        self.threads = []

    def transact(self, what, body):
        assert what
        asyncio.run(body(self))

    def send_fd(self, fd):
        end = socket.socket(fileno=os.dup(fd))
        self.threads.append(threading.Thread(target=self._serve, args=(end,)))
        self.threads[-1].start()

    async def execute(self, command, arguments):
        self.commands.append((command, arguments))

    def _serve(self, end):
        with end, end.makefile("rb") as lines:
            for line in lines:
                text = line.decode().strip()
                self.lines.append(text)
                answer = self.answers.get(text, b"OK\n")
                if answer is None:
                    return
                for at in range(0, len(answer), 3):  # in pieces
                    end.sendall(answer[at : at + 3])


@pytest.fixture
def attached():
    made = []

    def make(answers, **more):
        qmp = Qmp(answers, **more)
        made.append((qmp, QTest(qmp)))
        return made[-1]

    yield make
    for qmp, port in made:
        port.close()
        for thread in qmp.threads:
            thread.join(5)


def test_nothing_is_attached_before_it_is_used(attached):
    qmp, _ = attached({})
    assert qmp.commands == []


def test_it_is_attached_once(attached):
    qmp, port = attached({"inl 0xcfc": b"OK 0x0000ffff\n"})
    port.outl(0xCF8, 0x8000_0000)
    assert port.inl(0xCFC) == 0xFFFF
    assert [command for command, _ in qmp.commands] == ["getfd", "chardev-add", "object-add"]
    made = qmp.commands[-1][1]
    assert (made["qom-type"], made["log"]) == ("qtest", "none")


def test_registers(attached):
    qmp, port = attached({"readq 0x10": b"OK 0xfedcba9876543210\n", "readl 0x14": b"OK 0x76543210\n"})
    assert port.readq(0x10) == 0xFEDC_BA98_7654_3210
    assert port.readl(0x14) == 0x7654_3210
    port.writeq(0x18, (1 << 64) - 1)
    assert qmp.lines == ["readq 0x10", "readl 0x14", "writeq 0x18 0xffffffffffffffff"]


def test_a_refusal_is_named(attached):
    _, port = attached({"readq 0x0": b"FAIL Unknown command 'readq'\n"})
    with pytest.raises(QmpRefused, match="refused") as caught:
        port.readq(0)
    assert "Unknown command" in caught.value.observed


def test_an_end_is_named(attached):
    _, port = attached({"readq 0x0": None})
    with pytest.raises(QmpLost, match="gone"):
        port.readq(0)


def test_silence_is_named(attached):
    _, port = attached({"readq 0x0": b"OK 0x"}, scale=0.005)
    with pytest.raises(QmpSilent, match="does not answer"):
        port.readq(0)
