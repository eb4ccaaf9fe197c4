# SPDX-License-Identifier: MIT
"""The agent on this host as a process of no guest."""

import pytest

from harness.link import Process
from harness.link.link import Link


class OnHost(Process):
    """The agent, without a guest around it."""

    operation_timeout = 10.0

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.link = link
        self.hello = link.hello()


@pytest.fixture
def on_host() -> type[OnHost]:
    return OnHost
