# SPDX-License-Identifier: MIT
"""What can go wrong between the host and the agent."""

import errno as _errno
import os

from harness.errors import GuestFailure, HarnessError


class ChannelBroken(GuestFailure):
    """Bytes arrived that are no frame, or the other end closed."""


class RequestTimedOut(GuestFailure):
    """No reply before the deadline; ``observed`` says which party is silent.

    Attributes:
        agent_answers: True when a ping was answered after the deadline, so the operation is what hangs;
            False when the agent is silent as well; None when that could not be asked.
    """

    def __init__(
        self, summary: str, *, agent_answers: bool | None, observed: str, hint: str, evidence: tuple[str, ...]
    ) -> None:
        super().__init__(summary, observed=observed, hint=hint, evidence=evidence)
        self.agent_answers = agent_answers


class NotRestored(GuestFailure):
    """A guest that came out of a snapshot is not the one that went in; ``observed`` says by what."""


class RequestRejected(HarnessError):
    """The agent answered, and its answer is no.

    Attributes:
        status: the ``enum link_status`` name in guest/link_abi.h.
    """

    def __init__(self, what: str, status: str, meaning: str) -> None:
        super().__init__(f"{what}: the agent rejected the request", observed=f"{status}: {meaning}")
        self.status = status


class UnknownOperation(RequestRejected):
    """The agent has no such operation (LINK_UNKNOWN_OP)."""


class RequestMalformed(RequestRejected):
    """The request contradicts itself (LINK_MALFORMED)."""


class RequestTooBig(RequestRejected):
    """The payload exceeds what the agent accepts (LINK_TOO_BIG)."""


class RequestRefused(RequestRejected):
    """The system call would end, fork or confuse the agent (LINK_REFUSED, guest/policy.c)."""


class GuestBusy(RequestRejected):
    """The agent's queue or its table of mappings is full (LINK_NO_MEMORY)."""


class GuestOSError(HarnessError):
    """A system call in the guest failed.

    Attributes:
        errno: the positive errno value.
        what: the call, as a person would write it.
    """

    def __init__(self, errno: int, what: str) -> None:
        name = _errno.errorcode.get(errno, f"errno {errno}")
        super().__init__(f"{what}: {os.strerror(errno)}", observed=name)
        self.errno = errno
        self.what = what
