"""What servers say in their own words, made fit for one of our lines (pure)."""

from __future__ import annotations

import html
import re

_SHOWN_BODY = 300


def shorten(text: str) -> str:
    """Make one short line of what a server says, without its HTML (pure)."""
    plain = re.sub(r"(?is)<(script|style|head)\b.*?</\1>|<[^>]*>", " ", text)
    line = " ".join(html.unescape(plain).split())
    return line if len(line) <= _SHOWN_BODY else line[: _SHOWN_BODY - 3] + "..."
