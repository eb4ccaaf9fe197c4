# SPDX-License-Identifier: MIT
"""Talking to the guest: framed requests over a virtio-serial port, and the guest they boot."""

from harness.link.errors import (
    ChannelBroken,
    GuestBusy,
    GuestOSError,
    RequestMalformed,
    RequestRefused,
    RequestRejected,
    RequestTimedOut,
    RequestTooBig,
    UnknownOperation,
)
from harness.link.guest import Guest, GuestOptions, IoctlResult
from harness.link.link import Hello, Link, Pending, Reply
from harness.link.syscalls import In, InOut, Nr, Out, SyscallResult, cstring

__all__ = [
    "ChannelBroken",
    "Guest",
    "GuestBusy",
    "GuestOSError",
    "GuestOptions",
    "Hello",
    "In",
    "InOut",
    "IoctlResult",
    "Link",
    "Nr",
    "Out",
    "Pending",
    "Reply",
    "RequestMalformed",
    "RequestRefused",
    "RequestRejected",
    "RequestTimedOut",
    "RequestTooBig",
    "SyscallResult",
    "UnknownOperation",
    "cstring",
]
