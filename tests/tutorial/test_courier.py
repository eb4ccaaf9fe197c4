# SPDX-License-Identifier: MIT
"""The tutorial's test: the driver does its work, and does it without a mistake."""


def test_courier(audit):
    with audit.module("courier", devices=["edu"], exercise="deliver.sh") as run:
        assert run.mappings == []  # nothing stays mapped between two messages
    assert run.findings == []
