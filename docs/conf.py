"""Sphinx, without extensions that need the package installed."""

from pathlib import Path
from re import search

_version = search(r'__version__ = "([^"]+)"', (Path(__file__).parent.parent / "orama" / "_version.py").read_text())
assert _version is not None

project = "orama-webrtc"
author = "the orama developers"
version = release = _version[1]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Real-time voice, video and data for the namespaces of a small cluster",
    "fixed_sidebar": True,
    "page_width": "70em",
}
html_show_sourcelink = False
highlight_language = "none"
