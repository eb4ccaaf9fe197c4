# SPDX-License-Identifier: MIT
"""Talking to the guest: framed requests over a virtio-serial port, and the guest they boot."""

from harness.link.batch import Batch
from harness.link.columns import Column, Loaded
from harness.link.errors import (
    AgentDead,
    ChannelBroken,
    GuestBusy,
    GuestOSError,
    KernelHung,
    NotRestored,
    OperationTimedOut,
    RequestMalformed,
    RequestRefused,
    RequestRejected,
    RequestTimedOut,
    RequestTooBig,
    UnknownOperation,
)
from harness.link.guest import Guest, GuestOptions
from harness.link.link import Hello, Link, Pending, PendingCall, Reply
from harness.link.memory import PROT_NONE, PROT_READ, PROT_WRITE, UserMemory
from harness.link.peer import Peer, PeerDied, PeerNotStarted
from harness.link.plugs import NotPlugged, Plugged
from harness.link.process import IoctlResult, PendingIoctl, Process
from harness.link.program import Program, ProgramNotStarted
from harness.link.start import Start, StartKind
from harness.link.syscalls import In, InOut, Nr, Out, SyscallResult, cstring

__all__ = [
    "PROT_NONE",
    "PROT_READ",
    "PROT_WRITE",
    "AgentDead",
    "Batch",
    "ChannelBroken",
    "Column",
    "Guest",
    "GuestBusy",
    "GuestOSError",
    "GuestOptions",
    "Hello",
    "In",
    "InOut",
    "IoctlResult",
    "KernelHung",
    "Link",
    "Loaded",
    "NotPlugged",
    "NotRestored",
    "Nr",
    "OperationTimedOut",
    "Out",
    "Peer",
    "PeerDied",
    "PeerNotStarted",
    "Pending",
    "PendingCall",
    "PendingIoctl",
    "Plugged",
    "Process",
    "Program",
    "ProgramNotStarted",
    "Reply",
    "RequestMalformed",
    "RequestRefused",
    "RequestRejected",
    "RequestTimedOut",
    "RequestTooBig",
    "Start",
    "StartKind",
    "SyscallResult",
    "UnknownOperation",
    "UserMemory",
    "cstring",
]
