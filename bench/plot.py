"""A few lines over time as an SVG, one panel each."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from attrs import frozen

WIDTH, HEIGHT, LEFT, GAP = 760, 110, 70, 34


@frozen
class Panel:
    """A line: its *values* at the plot's times, and what they are."""

    title: str
    values: Sequence[float]


def svg(title: str, seconds: Sequence[float], panels: Sequence[Panel]) -> str:
    """*panels* one below the other, over the same *seconds*; every scale begins at 0."""
    whole = 30 + len(panels) * (HEIGHT + GAP) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {whole}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    span = max(seconds[-1] - seconds[0], 1.0)
    for number, panel in enumerate(panels):
        top = 50 + number * (HEIGHT + GAP)
        highest = max(max(panel.values), 1.0) * 1.1
        points = " ".join(
            f"{LEFT + (at - seconds[0]) / span * WIDTH:.1f},{top + HEIGHT - value / highest * HEIGHT:.1f}"
            for at, value in zip(seconds, panel.values, strict=True)
        )
        parts += [
            f'<text x="{LEFT}" y="{top - 6}">{escape(panel.title)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>',
            f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{highest:,.0f}</text>',
            f'<text x="{LEFT - 6}" y="{top + HEIGHT}" text-anchor="end">0</text>',
            f'<polyline points="{points}" fill="none" stroke="#1f6feb" stroke-width="1.5"/>',
        ]
    bottom = 50 + len(panels) * (HEIGHT + GAP) - GAP + 14
    parts.append(f'<text x="{LEFT + WIDTH}" y="{bottom}" text-anchor="end">{span / 60:.0f} min</text></svg>')
    return "\n".join(parts) + "\n"
