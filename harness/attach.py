# SPDX-License-Identifier: MIT
"""Speaking to a session of pytest that keeps a guest: what ``iobmd attach`` does, and the words it uses.

A client connects to the session's socket and sends one request, a line of JSON; for a shell its standard
streams travel along as descriptors.  One line comes back: ``{"status": ..., "said": ...}``.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from harness.errors import BadInput

SHELL, QMP, RESUME, PAUSE, END = "shell", "qmp", "resume", "pause", "end"
WORDS: Final = (SHELL, QMP, RESUME, PAUSE, END)
REQUEST_MAX: Final = 1 << 16
STREAMS: Final = 3


def attach(path: Path, words: Sequence[str]) -> int:
    """Ask a session that keeps a guest for something, and print its answer.

    Args:
        path: the socket it has printed.
        words: one of `WORDS`; a shell if there is none.  After ``qmp`` a command and its arguments as JSON.

    Returns:
        The exit status for this process: a shell's own, 1 when QEMU refused, else 0.

    Raises:
        BadInput: nobody is there, or the words make no sense.
    """
    request = _request(list(words) or [SHELL])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        try:
            line.connect(str(path))
        except OSError as error:
            raise BadInput(
                f"no session keeps a guest at {path}",
                observed=error.strerror or str(error),
                hint="pytest --keep-vm prints the line to type while it waits",
            ) from error
        message = json.dumps(request).encode() + b"\n"
        streams = range(STREAMS) if request["do"] == SHELL else ()
        socket.send_fds(line, [message], list(streams))
        answer = read_line(line)
    if not answer:
        raise BadInput("the session has ended before it answered", tried=" ".join(words) or SHELL)
    told = json.loads(answer)
    if told["said"]:
        print(told["said"], file=sys.stderr if told["status"] else sys.stdout)
    return int(told["status"])


def read_line(line: socket.socket) -> bytes:
    """Read up to a line break, or to the end; of an endless one the beginning."""
    data = b""
    while not data.endswith(b"\n") and len(data) < REQUEST_MAX:
        piece = line.recv(1 << 12)
        if not piece:
            break
        data += piece
    return data


def _request(words: list[str]) -> dict[str, Any]:
    if words[0] not in WORDS:
        raise BadInput(f"{words[0]!r} is nothing to ask for", hint=f"one of: {', '.join(WORDS)}")
    request: dict[str, Any] = {"do": words[0]}
    if words[0] == QMP:
        if len(words) not in (2, 3):
            raise BadInput("qmp takes a command, and its arguments as JSON", hint="qmp query-status")
        request["execute"] = words[1]
        try:
            request["arguments"] = json.loads(words[2]) if len(words) > 2 else {}
        except ValueError as error:
            raise BadInput(f"{words[2]} is no JSON", observed=str(error)) from error
        if not isinstance(request["arguments"], dict):
            raise BadInput(f"{words[2]} is no JSON object", hint="""qmp device_del '{"id": "x"}'""")
    elif len(words) > 1:
        raise BadInput(f"{words[0]} takes no further words", observed=" ".join(words[1:]))
    return request
