"""What a wheel and a source distribution of orama must hold: ``python tests/packaging.py DIRECTORY``."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

#: Files that a build loses easily: the plugin, what is no module, and the migrations.
INSTALLED = (
    "orama/__init__.py",
    "orama/py.typed",
    "orama/web/index.html",
    "orama/web/orama-webrtc.js",
    "orama/store/migrations/env.py",
    "twisted/plugins/orama_dropin.py",
)
SOURCE = (
    *INSTALLED,
    *("README.rst", "NEWS.rst", "LICENSE", "CONTRIBUTING.rst", "Makefile", "tox.ini", "setup.cfg", "pyproject.toml"),
    *("etc/orama.toml", "docs/index.rst", "tests/__main__.py"),
    "etc/systemd/orama-webrtc.service",
    "etc/systemd/orama-namespace-sfu@.service",
    "etc/systemd/orama-namespace-turn@.service",
    "etc/systemd/orama-units.rules",
)
#: What has no place in site-packages.
OUTSIDE = ("tests/", "bench/", "docs/", "etc/", "twisted/__init__.py", "twisted/plugins/__init__.py")


def missing(wanted: Iterable[str], names: Iterable[str]) -> list[str]:
    return sorted(set(wanted) - set(names))


def misplaced(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(OUTSIDE))


def main(directory: Path) -> int:
    wrong = []
    [wheel] = directory.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    wrong += [f"{wheel.name} lacks {name}" for name in missing(INSTALLED, names)]
    wrong += [f"{wheel.name} should not have {name}" for name in misplaced(names)]
    [source] = directory.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = [name.partition("/")[2] for name in archive.getnames()]
    wrong += [f"{source.name} lacks {name}" for name in missing(SOURCE, inside)]
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
