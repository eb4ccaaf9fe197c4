# SPDX-License-Identifier: MIT
"""Judgements and audits for people (tables) and machines (JSON); it knows results only, never a guest."""

from harness.report.audit_json import audits_to_json
from harness.report.audit_table import print_audit, print_rule, print_rules
from harness.report.clauses import Proof, print_clauses
from harness.report.complete import IncompleteJudgement, require_complete
from harness.report.decisions import decisions_table
from harness.report.json_report import ReportNotWritten, check_writable, to_json, write_json, write_text
from harness.report.machines import machines_to_json, print_machines, write_machines
from harness.report.table import print_judgement, report_console

__all__ = [
    "IncompleteJudgement",
    "Proof",
    "ReportNotWritten",
    "audits_to_json",
    "check_writable",
    "decisions_table",
    "machines_to_json",
    "print_audit",
    "print_clauses",
    "print_judgement",
    "print_machines",
    "print_rule",
    "print_rules",
    "report_console",
    "require_complete",
    "to_json",
    "write_json",
    "write_machines",
    "write_text",
]
