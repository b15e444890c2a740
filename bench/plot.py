"""One kind of picture: lines over a logarithmic axis, as SVG that a browser shows on a light or a dark page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 20, 50
COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3")
GREY = "#888"


@dataclass(frozen=True, slots=True)
class Line:
    """A name and its points, from left to right."""

    name: str
    points: list[tuple[float, float]]


def line_plot(lines: Sequence[Line], x_title: str, y_title: str) -> str:
    """Draw lines; y begins at 0, so that growth looks as large as it is."""
    xs = sorted({x for line in lines for x, _ in line.points})
    top = _round_up(max(y for line in lines for _, y in line.points))
    low, high = math.log(xs[0]), math.log(xs[-1]) if len(xs) > 1 else math.log(xs[0]) + 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (math.log(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{GREY}">'
    ]
    for step in range(5):
        value = top * step / 4
        _, y = place(xs[0], value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-width="0.4"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for x in xs:
        across, _ = place(x, 0)
        parts.append(f'<text x="{across:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:.3g}</text>')
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_title)}</text>')
    turn = f"rotate(-90 16 {middle})"
    parts.append(f'<text x="16" y="{middle}" text-anchor="middle" transform="{turn}">{escape(y_title)}</text>')
    for index, line in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        places = [place(x, y) for x, y in line.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        y = HEIGHT - BOTTOM - 12 - 16 * (len(lines) - 1 - index)
        parts.append(f'<text x="{LEFT + 12}" y="{y}" fill="{colour}">{escape(line.name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _round_up(value: float) -> float:
    """Find a round number that is at least so large."""
    unit = 10 ** math.floor(math.log10(value))
    return next(unit * step for step in (1, 2, 4, 6, 8, 10) if unit * step >= value)
