# SPDX-License-Identifier: MIT
"""Audits as JSON, for machines.

Schema ``iobmd.audit/1``, with the same promises as the judgement's: keys in a fixed order, addresses as
hexadecimal strings, sizes in bytes, and a key is only ever added.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from harness.audit.result import AuditResult, Judged

AUDIT_SCHEMA: Final = "iobmd.audit/1"


def audits_to_json(results: Sequence[AuditResult]) -> str:
    """Return audits as one JSON document that ends in a newline and is plain ASCII."""
    document = {
        "schema": AUDIT_SCHEMA,
        "findings": sum(len(result.findings) for result in results),
        "audits": [_audit(result) for result in results],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _audit(result: AuditResult) -> dict[str, Any]:
    made_on, failure = result.provenance, result.failure
    return {
        "driver": result.driver,
        "source": result.source,
        "provenance": {
            "kernel": made_on.kernel,
            "release": made_on.release,
            "qemu": made_on.qemu,
            "accelerator": made_on.accelerator,
            "accelerator_reason": made_on.accelerator_reason,
            "machine": made_on.machine,
            "start": made_on.start,
        },
        "asked": result.asked,
        "loaded": list(result.loaded),
        "devices": list(result.bound),
        "exercise": result.exercised,
        "exit_code": result.exit_code,
        "failure": None
        if failure is None
        else {"kind": failure.kind.word, "summary": failure.summary, "observed": failure.observed},
        "ledger": {"events": result.events, "lost": result.lost, "missed": result.missed},
        "outside": {"looks": result.looks},
        "seconds": round(result.seconds, 6),
        "judged": [_judged(row) for row in result.judged],
        "findings": [finding.to_json() for finding in result.findings],
        "complaints": list(result.complaints),
        "not_judged": [
            {"what": one.what, "rules": list(one.rules), "hint": one.hint} for one in result.blind
        ],
    }


def _judged(row: Judged) -> dict[str, Any]:
    return {
        "what": row.what,
        "device": row.device,
        "driver": row.driver,
        "direction": row.direction,
        "site": row.site,
        "calls": row.calls,
        "failed": row.failed,
        "alive": row.alive,
        "smallest": row.smallest,
        "largest": row.largest,
        "lowest": hex(row.lowest),
        "highest": hex(row.highest),
        "mask": hex(row.mask),
        "rules": list(row.rules),
    }
