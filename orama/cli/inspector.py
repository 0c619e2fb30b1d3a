"""``orama inspector``: checks a whole cluster, what is wanted of it against what is seen, and says what to do."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orama.cli.command import Call, command, environment_options
from orama.cli.control import Failed
from orama.cli.environments import load
from orama.cli.output import rows
from orama.cli.steps import count

if TYPE_CHECKING:
    from orama.cli.findings import Finding


@command(None, "inspector")
@environment_options
@click.option("--namespace", metavar="N", help="Check this namespace only.")
@click.option("--only", multiple=True, metavar="ID", help="Only checks with this id; * is any text. Repeatable.")
def inspector(
    call: Call, env: str | None, environments: Path | None, namespace: str | None, only: tuple[str, ...]
) -> None:
    """Check services, DNS, certificates, ports, clocks and secrets of a cluster; 1 when any check failed."""
    from orama.cli.asking import ask
    from orama.cli.findings import Cluster
    from orama.cli.inspection import failed, inspect, planned, selected
    from orama.cli.probes import look

    environment = None if env is None else load(env, environments)
    answers = ask(call.control, environment, count("nodes that have answered"))
    now = time.time()
    if environment is None:
        cluster = Cluster(answers, now)
    else:
        cluster = Cluster(answers, now, environment.dns, environment.base_domain)
    if namespace is not None and cluster.reports and namespace not in cluster.namespaces:
        raise Failed("namespace_not_found", f"no node that answers knows a namespace {namespace!r}")
    seen = look(planned(cluster, namespace), count("looked at from here"))
    findings = selected(inspect(cluster, seen, namespace), only)
    if not findings:
        raise Failed("no_such_check", "there is no such check in this cluster")
    shown = [_shown(finding) for finding in findings]
    counts = {status: sum(each["status"] == status for each in shown) for status in ("pass", "warn", "fail")}
    checked_at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    call.answer({"environment": env, "checked_at": checked_at, "counts": counts, "findings": shown}, _table)
    if wrong := failed(findings):
        raise Failed("checks_failed", f"{wrong} of {len(findings)} checks failed")


def _shown(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.id,
        "status": finding.status.value,
        "severity": finding.severity.value,
        "namespace": finding.namespace or None,
        "node": finding.node or None,
        "message": finding.message,
        "hint": finding.hint or None,
    }


def _table(answer: dict[str, Any]) -> None:
    findings = answer["findings"]
    rows(("status", "id", "node", "message"), findings)
    hints: dict[str, list[str]] = {}
    for finding in findings:
        if finding["hint"] and finding["id"] not in hints.setdefault(finding["hint"], []):
            hints[finding["hint"]].append(finding["id"])
    for hint, ids in hints.items():
        click.echo(f"\n{', '.join(ids)}\n  {hint}")
    counts = answer["counts"]
    click.echo(f"\n{counts['pass']} passed, {counts['warn']} with a warning, {counts['fail']} failed")
