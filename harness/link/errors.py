# SPDX-License-Identifier: MIT
"""What can go wrong between the host and the agent."""

import errno as _errno
import os

from harness.errors import FailureKind, GuestFailure, HarnessError


class ChannelBroken(GuestFailure):
    """Bytes arrived that are no frame, or the other end closed."""

    kind = FailureKind.CHANNEL_BROKEN


class RequestTimedOut(GuestFailure):
    """No reply before the deadline; ``observed`` says which party is silent.

    The link's own finding.  A guest made by `harness.options.make_guest` has it looked into at once and
    raises one of the subclasses, or what is wrong with the machine.

    Attributes:
        agent_answers: True when a ping was answered after the deadline, so the operation is what hangs;
            False when the agent is silent as well; None when that could not be asked.
    """

    def __init__(
        self, summary: str, *, agent_answers: bool | None, observed: str, hint: str, evidence: tuple[str, ...]
    ) -> None:
        super().__init__(summary, observed=observed, hint=hint, evidence=evidence)
        self.agent_answers = agent_answers


class OperationTimedOut(RequestTimedOut):
    """The agent answers, so the kernel lives: what hangs is the operation."""

    kind = FailureKind.OPERATION_TIMED_OUT


class AgentDead(RequestTimedOut):
    """The kernel takes interrupts and runs processes; the agent does not answer."""

    kind = FailureKind.AGENT_DEAD


class KernelHung(RequestTimedOut):
    """The kernel does not panic and does not run anything: it spins, or its processors stand still."""

    kind = FailureKind.KERNEL_HUNG


class NotRestored(GuestFailure):
    """A guest that came out of a snapshot is not the one that went in; ``observed`` says by what."""

    kind = FailureKind.NOT_RESTORED


class RequestRejected(HarnessError):
    """The agent answered, and its answer is no.

    Attributes:
        status: the ``enum link_status`` name in guest/link_abi.h.
    """

    kind = FailureKind.REFUSED

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

    kind = FailureKind.REFUSED

    def __init__(self, errno: int, what: str) -> None:
        name = _errno.errorcode.get(errno, f"errno {errno}")
        super().__init__(f"{what}: {os.strerror(errno)}", observed=name)
        self.errno = errno
        self.what = what
