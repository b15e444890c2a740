"""The complete reading of one tar header block and of the extension records around it; pure, bytes in, values out.

Sources: POSIX.1-2017 pax (ustar and pax interchange format), the GNU tar manual ("Basic Tar Format", "Sparse Formats"),
and star's prefix variant. Problems are raised as `ValueError` with the plain fact; who knows shard and offset turns
that into a `HeaderError`.
"""

from __future__ import annotations

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
MAX_SIZE = (1 << 63) - 1
MAX_EXTENSION_BYTES = (
    1 << 20
)  # a pax header or long name beyond this is an attack or damage (Go's archive/tar: the same)
MAX_SPARSE_ENTRIES = 1 << 16

KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "device",
    b"4": "device",
    b"5": "directory",
    b"6": "fifo",
    b"S": "sparse",
    b"x": "pax",
    b"X": "pax",
    b"g": "pax-global",
    b"L": "gnu-long-name",
    b"K": "gnu-long-link",
}
HEADER_ONLY = frozenset({"hardlink", "symlink", "device", "directory", "fifo"})
"""Kinds whose size field tells of no data blocks, whatever it says (POSIX; tarfile and Go agree)."""

SparseMap = list[tuple[int, int]]
"""(offset, length) of each piece of a sparse file that is stored, in order."""


class Header:
    """One header block, decoded as far as the tools need it."""

    __slots__ = ("kind", "link", "name", "real_size_bytes", "size_bytes", "sparse", "sparse_continues")

    def __init__(self, name: bytes, kind: str, size_bytes: int, link: bytes) -> None:
        self.name = name
        self.kind = kind
        """A value of KINDS, or "type 'c'" for a type flag that no standard knows."""
        self.size_bytes = size_bytes
        """Bytes of data that follow in the archive, before padding."""
        self.link = link
        self.sparse: SparseMap = []
        self.sparse_continues = False
        self.real_size_bytes = -1
        """Size of a sparse file once expanded; -1 for any other."""


def parse_number(text: bytes) -> int:
    """Read a numeric header field: octal with blanks and NULs around it, or GNU's base-256 (high bit set first).

    Raises:
        ValueError: the field holds neither.
    """
    if text and text[0] & 0x80:
        value = int.from_bytes(text, "big") & ~(0x80 << 8 * (len(text) - 1))
        if text[0] & 0x40:  # two's complement, sign bit next to the marker
            value -= 1 << (8 * len(text) - 1)
        return value
    digits = text.partition(b"\0")[0].strip()
    if not digits:
        return 0
    if digits.translate(None, b"01234567"):
        raise ValueError(f"{text!r} is no octal number")
    return int(digits, 8)


def checksum_fault(block: bytes) -> str | None:
    """Tell what is wrong with a header's checksum; None when it holds (unsigned, or signed as old Sun tars have it)."""
    try:
        stored = parse_number(block[148:156])
    except ValueError as error:
        return f"the checksum field {error}"
    rest = block[:148] + block[156:]
    unsigned = sum(rest) + 8 * 32
    if stored == unsigned or stored == unsigned - 256 * sum(c > 127 for c in rest):
        return None
    return f"the checksum field says {stored}, but the bytes of the header add up to {unsigned}"


def parse_header(block: bytes) -> Header:
    """Decode one 512-byte header block, without the extension records before it.

    Raises:
        ValueError: checksum or size cannot be right; the text says what was found.
    """
    if fault := checksum_fault(block):
        raise ValueError(fault)
    flag = block[156:157]
    kind = KINDS.get(flag, f"type {flag.decode('latin-1')!r}")
    try:
        size = parse_number(block[124:136])
    except ValueError as error:
        raise ValueError(f"the size field {error}") from None
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f"the size field says {size} bytes")
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0":
        # star keeps atime and ctime behind a shorter prefix and signs with "tar\0" at the very end
        width = 131 if block[508:512] == b"tar\0" else 155
        if prefix := block[345 : 345 + width].partition(b"\0")[0]:
            name = prefix + b"/" + name
    elif block[257:265] == b"ustar  \0" and block[345] and flag != b"S" and (prefix := _go17_prefix(block)):
        name = prefix + b"/" + name
    if flag == b"\0" and name.endswith(b"/"):
        kind = "directory"  # how Unix v7 wrote them
    header = Header(name, kind, 0 if kind in HEADER_ONLY else size, block[157:257].partition(b"\0")[0])
    if kind == "sparse":
        header.sparse = parse_sparse_entries(block[386:482])
        header.sparse_continues = block[482] != 0
        header.real_size_bytes = parse_number(block[483:495])
    return header


def _go17_prefix(block: bytes) -> bytes:
    """Read the prefix that Go before 1.8 put where GNU headers have their times; empty where it is times."""
    try:
        parse_number(block[345:357])
        parse_number(block[357:369])
    except ValueError:
        prefix = block[345:500].partition(b"\0")[0]
        return prefix if prefix.isascii() else b""
    return b""


def parse_sparse_entries(area: bytes) -> SparseMap:
    """Read old GNU sparse entries, 24 bytes each, up to the first unused one."""
    entries = []
    for start in range(0, len(area) - 23, 24):
        if not area[start]:
            break
        entries.append((parse_number(area[start : start + 12]), parse_number(area[start + 12 : start + 24])))
    return entries


def parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split the body of a pax header into its records, in order (GNU sparse 0.0 repeats its keywords).

    Raises:
        ValueError: a record's length, '=' or line end is not where it must be.
    """
    records = []
    position = 0
    while position < len(data):
        if not data[position] and not data[position:].strip(b"\0"):
            break  # some writers pad with NULs
        blank = data.find(b" ", position, position + 20)
        digits = data[position:blank] if blank > 0 else b""
        if not digits.isdigit():
            raise ValueError(f"a pax record begins with {data[position : position + 20]!r} instead of its length")
        stop = position + int(digits)
        keyword, equals, value = data[blank + 1 : stop - 1].partition(b"=")
        if stop > len(data) or stop <= blank + 1 or data[stop - 1 : stop] != b"\n" or not equals or not keyword:
            raise ValueError(f"the pax record at {data[position : position + 40]!r} is not 'length keyword=value'")
        records.append((keyword, value))
        position = stop
    return records


def sparse_from_pax(records: list[tuple[bytes, bytes]]) -> SparseMap | None:
    """Collect the map of GNU sparse formats 0.0 and 0.1 from pax records; None where they describe none.

    Raises:
        ValueError: the numbers do not pair up.
    """
    values = dict(records)
    if b"GNU.sparse.map" in values:
        numbers = [parse_decimal(text) for text in values[b"GNU.sparse.map"].split(b",") if text]
    else:
        numbers = [parse_decimal(v) for k, v in records if k in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")]
        if not numbers:
            return [] if b"GNU.sparse.size" in values else None
    if len(numbers) % 2:
        raise ValueError("the sparse map has an offset without a length")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def parse_decimal(text: bytes) -> int:
    """Read a decimal number of a pax record; `ValueError` for anything but digits up to 2^63 - 1."""
    digits = text.lstrip(b"0") or text[-1:]
    if not text.isdigit() or len(digits) > 19 or int(digits) > MAX_SIZE:
        raise ValueError(f"{text[:40]!r} is no number of bytes")
    return int(digits)


def check_sparse(entries: SparseMap, stored_bytes: int, real_bytes: int) -> None:
    """Refuse a sparse map that overlaps, leaves the file or does not add up to the stored bytes (`ValueError`)."""
    if len(entries) > MAX_SPARSE_ENTRIES:
        raise ValueError(f"the sparse map has {len(entries)} entries, more than {MAX_SPARSE_ENTRIES}")
    end = 0
    for offset, length in entries:
        if offset < end or length < 0:
            raise ValueError("the sparse map is not in order")
        end = offset + length
    if end > real_bytes:
        raise ValueError(f"the sparse map ends at {end}, past the file's {real_bytes} bytes")
    if (total := sum(length for _, length in entries)) != stored_bytes:
        raise ValueError(f"the sparse map tells of {total} bytes, but {stored_bytes} are stored")
