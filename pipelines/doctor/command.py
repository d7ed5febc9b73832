"""`sparse-detr doctor`: the findings as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.doctor.config import DoctorConfig
from pipelines.doctor.connections import Finding, State
from pipelines.doctor.run import as_records, examine, healthy

_MARKS: dict[State, str] = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "broken": "[bold red]broken[/]"}


def findings_table(findings: Sequence[Finding]) -> Table:
    """The doctor's findings, with the remedy under what needs one."""
    table = Table(title="sparse-detr doctor", title_justify="left", show_lines=False)
    table.add_column("what", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found", overflow="fold")
    group = ""
    for finding in findings:
        if group and finding.group != group:
            table.add_section()
        group = finding.group
        remedy = f"\n[dim]-> {escape(finding.remedy)}[/]" if finding.remedy else ""
        table.add_row(escape(finding.name), _MARKS[finding.state], escape(finding.value) + remedy)
    return table


def doctor_command(config: DoctorConfig) -> int:
    """Show the findings; 1 if something is broken."""
    findings = examine()
    console = Console()
    if config.json:
        console.print_json(json.dumps(as_records(findings)))
    else:
        console.print(findings_table(findings))
        broken = sum(finding.state == "broken" for finding in findings)
        console.print("Nothing is wrong." if not broken else f"[bold red]{broken} broken[/]; the remedies stand above.")
    return 0 if healthy(findings) else 1
