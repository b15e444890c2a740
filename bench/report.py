"""The benchmark's figures as text for a terminal, and as the table in docs/benchmark.md.

usage: report.py FIGURES.json [--write docs/benchmark.md]      (prints the table without --write)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START, END = "<!-- figures: written by bench/report.py -->", "<!-- end of figures -->"

BAR_HEADER = ("ratio", "required", "hoped", "measured", "without start-up", "result")
ROW_HEADER = (
    "set",
    "job",
    "tool",
    "CPU us/sample",
    "without start-up",
    "start-up CPU s",
    "wall s",
    "peak MB",
    "anonymous MB",
)


def bar_lines(bars: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Format one line for each bar."""
    lines = []
    for bar in bars:
        sign = "<=" if bar["at_most"] else ">="
        hoped = "-" if bar["hoped"] is None else f"{sign} {bar['hoped']:g}"
        net = "-" if bar["net"] is None else f"{bar['net']:.2f}"
        lines.append((bar["name"], f"{sign} {bar['required']:g}", hoped, f"{bar['measured']:.2f}", net, bar["word"]))
    return lines


def row_lines(rows: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Format one line for each row."""
    return [
        (
            *name.split("/", 2),
            f"{row['cpu_us']:.2f}",
            f"{row['net_us']:.2f}",
            f"{row['start_s']:.3f}",
            f"{row['wall_s']:.2f}",
            f"{row['peak_rss_mb']:.0f}",
            f"{row['peak_anon_mb']:.0f}",
        )
        for name, row in rows.items()
    ]


def about(figures: Mapping[str, Any]) -> str:
    """Say on what, where and how the figures were measured."""
    machine = figures["machine"]
    sets = ", ".join(
        (
            f"{name} {facts['bytes'] / 1e6:,.0f} MB on disk, {facts['samples']:,} samples with unlike keys"
            if facts["unique_keys"]
            else f"{name} {facts['bytes_on_disk'] / 1e6:.0f} MB on disk, {facts['samples']:,} samples by links"
        )
        for name, facts in figures["sets"].items()
    )
    return (
        f"{figures['date']}; {machine['processors']} processors, {machine['system']}, Python {machine['python']}, "
        f"webdataset {machine['versions']['webdataset']}; {figures['rounds']} rounds; two computing processes reach "
        f"{figures['parallel']:.2f} times one here. Sets: {sets}."
    )


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """Lay out a table for a terminal; the first `left` columns are text."""
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]

    def row(line: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join(row(line) for line in [header, *lines])


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """Lay out a table for a page."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def as_text(figures: Mapping[str, Any]) -> str:
    """Everything for a terminal."""
    rows, bars = row_lines(figures["rows"]), bar_lines(figures["bars"])
    return "\n\n".join([about(figures), aligned(ROW_HEADER, rows, 3), aligned(BAR_HEADER, bars, 1)])


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Everything for the page."""
    rows, bars = row_lines(figures["rows"]), bar_lines(figures["bars"])
    return "\n\n".join([about(figures), markdown(BAR_HEADER, bars, 1), markdown(ROW_HEADER, rows, 3)])


def put_between(page: Path, start: str, end: str, text: str) -> None:
    """Put text into a page between two marks, in place of what is there."""
    before, _, rest = page.read_text().partition(start)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}")


def main(arguments: list[str]) -> None:
    """Print the table, or put it into a page between its marks."""
    figures = json.loads(Path(arguments[0]).read_text())
    if "--write" not in arguments:
        print(as_text(figures))
        return
    put_between(Path(arguments[arguments.index("--write") + 1]), START, END, as_markdown(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
