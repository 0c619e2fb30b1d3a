"""The ``orama`` command in a process of its own, against the node of a data directory."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from tests.node import NodeProcess, environment

#: The namespace beside ``default`` that tests share, as there are but twenty blocks of media ports on a machine.
OTHER = "other"


def orama(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orama.cli.main", *arguments, "--data-dir", str(data_dir)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=180, check=False)


def run(node: NodeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return orama(node.data, *arguments)


def data(node: NodeProcess, *arguments: str) -> Any:
    """What a command says in JSON."""
    done = run(node, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, ""), done
    return json.loads(done.stdout)


@cache
def key(node: NodeProcess, namespace: str = "default", role: str = "member") -> str:
    """A key of *namespace*, which must be there; :data:`OTHER` comes into being."""
    if namespace == OTHER and OTHER not in {each["name"] for each in data(node, "namespace", "list")["namespaces"]}:
        data(node, "namespace", "create", OTHER)
    made: str = data(node, "namespace", "key", "create", "--namespace", namespace, "--role", role)["api_key"]
    return made


@cache
def secret(node: NodeProcess, namespace: str = "default") -> str:
    """What TURN credentials of *namespace* are made with."""
    key(node, namespace)
    text: str = data(node, "turn", "secret", "--namespace", namespace)["secret"]
    return text


def temporary(case: Any, node: NodeProcess, namespace: str, role: str = "owner") -> dict[str, str]:
    """The headers of somebody in a namespace that is there until the test *case* ends."""
    data(node, "namespace", "create", namespace)
    case.addCleanup(run, node, "namespace", "delete", namespace)
    made = data(node, "namespace", "key", "create", "--namespace", namespace, "--role", role)
    return {"X-API-Key": made["api_key"]}
