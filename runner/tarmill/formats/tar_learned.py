"""What the hot loops over tar headers have learned: fixed parts, checksums and sizes that were understood before.

Each table answers what it knows by one look-up, and takes the careful way for what it does not.
"""

from __future__ import annotations

from struct import Struct

from tarmill.formats.tar_header import parse_number

PARTS = Struct("148s8s356s")
"""A header block: what stands before the checksum, the checksum, the rest from the type flag on."""
NOTHING = (b"", b"", b"")
FILE, PAX, OTHER = range(3)
"""What the fixed part of a header stands for."""
MAX_CACHED = 4096
MAX_TAILS = 64
MAX_NAMES = 64


class Expected(dict[bytes, int]):
    """Checksum field -> low half of adler32 over the header's first 148 bytes, given its fixed part.

    The low half of adler32 is 1 + the sum of the bytes (modulo 65521, which 148 bytes cannot reach).
    """

    def __init__(self, tail: bytes) -> None:
        super().__init__()
        self.rest = sum(tail) + 8 * 32 - 1

    def __missing__(self, text: bytes) -> int:
        if len(self) > MAX_CACHED:
            self.clear()
        # six digits, NUL and blank is what nearly all write; anything else is looked at with care
        plain = text[:6].isdigit() and text[6:] == b"\0 "
        self[text] = expected = (int(text[:6], 8) if plain else parse_number(text)) - self.rest
        return expected


class Sizes(dict[bytes, int]):
    """Size field, all 12 bytes -> size, for sizes that the hot loop may take; `ValueError` for any other."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __missing__(self, text: bytes) -> int:
        size = int(text[:11], 8) if text[:11].isdigit() and text[11] in b"\0 " else parse_number(text)
        if not 0 <= size <= self.limit:
            raise ValueError(f"{size} bytes are for the slow path")
        if len(self) > MAX_CACHED:
            self.clear()
        self[text] = size
        return size


# What one shard teaches serves the next: plain values, so that threads may share them.
known_tails: dict[bytes, tuple[int, Expected]] = {}
known_sizes: dict[int, Sizes] = {}
known_names: dict[bytes, str] = {}
