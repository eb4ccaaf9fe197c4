# SPDX-License-Identifier: MIT
"""The real agent on the host: the binary a guest boots as pid 1, serving a socket instead of a port."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.images import AgentBuild, Layouts, SilentProgress, build_agent
from harness.link.frames import Decoder, Frame, Protocol


@dataclass(frozen=True)
class Agent:
    """One running agent and the test's end of its socket."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    fd: int  # of the link, in the agent
    protocol: Protocol

    def check(self) -> None:
        if self.process.poll() is not None:
            raise AssertionError(f"the agent ended with {self.process.returncode}")

    def send(self, data: bytes) -> None:
        self.socket.settimeout(10)
        self.socket.sendall(data)

    def request(self, op: int, ident: int, payload: bytes = b"", **fields: int) -> None:
        self.send(self.protocol.encode(op, ident, payload, **fields))

    def frames(self, until: int, seconds: float = 10.0) -> list[Frame]:
        """Everything the agent says up to the frame with id ``until``."""
        decoder, got = Decoder(self.protocol), []
        deadline = time.monotonic() + seconds
        while True:
            frame = decoder.next()
            assert decoder.take_noise() is None, "the agent wrote bytes that are no frame"
            if frame is not None:
                got.append(frame)
                if frame.id == until:
                    assert decoder.partial == 0
                    return got
                continue
            left = deadline - time.monotonic()
            assert left > 0, f"no frame {until} in {seconds} s, only {got}"
            self.socket.settimeout(left)
            data = self.socket.recv(1 << 16)
            assert data, "the agent closed its end"
            decoder.feed(data)


@pytest.fixture(scope="session")
def agent_build() -> AgentBuild:
    return build_agent(SilentProgress())


@pytest.fixture(scope="session")
def link_layouts(agent_build: AgentBuild) -> Layouts:
    return Layouts.from_elf(agent_build.debug)


@pytest.fixture(scope="session")
def protocol(link_layouts: Layouts) -> Protocol:
    return Protocol(link_layouts)


@pytest.fixture
def agent(agent_build: AgentBuild, protocol: Protocol) -> Iterator[Agent]:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            fd = theirs.fileno()
            process = subprocess.Popen([agent_build.binary, "--fd", str(fd)], pass_fds=[fd])
        try:
            yield Agent(process, ours, fd, protocol)
        finally:
            ours.close()
            try:
                process.wait(5)
            finally:
                process.kill()
                process.wait()
