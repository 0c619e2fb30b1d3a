"""Packages from the npm registry, installed once for a checkout."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

#: Where they are.
PACKAGES = Path(__file__).resolve().parent.parent.parent / "build" / "node"


def install(name: str, version: str) -> str:
    """Have the package; why not, else."""
    lacking = [program for program in ("node", "npm") if not shutil.which(program)]
    if lacking:
        return f"{' and '.join(lacking)} not installed"
    if not (PACKAGES / "node_modules" / name).is_dir():
        PACKAGES.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(PACKAGES), f"{name}@{version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"npm could not install {name}: {done.stderr.strip().splitlines()[-1:]}"
    return ""
