"""The complete, careful reading of members: every tar dialect, one member at a time.

The hot loop of `tar_read` hands over to this as soon as a header is anything but plain; here nothing is assumed and
everything is checked. Sources: as `tar_header`; GNU sparse formats 0.0, 0.1 and 1.0 from the GNU tar manual.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable

from tarmill.errors import HeaderError, LimitError, SampleError, TruncatedError
from tarmill.formats.tar_header import (
    BLOCK,
    MAX_EXTENSION_BYTES,
    MAX_SPARSE_ENTRIES,
    ZERO_BLOCK,
    Header,
    SparseMap,
    check_sparse,
    parse_decimal,
    parse_header,
    parse_pax,
    parse_sparse_entries,
    sparse_from_pax,
)
from tarmill.formats.tar_window import RawInput, Window

END_MARK = "end-mark"
"""Kind of the pseudo member that stands for a run of zero blocks."""

_GARBAGE = "bytes that are no tar header follow the end mark"
_LINK_CACHE_BYTES = 16 << 20
_MAX_CHAIN_BYTES = 2 * MAX_EXTENSION_BYTES
_MAX_LINE = 20
_MEANINGFUL = frozenset(
    {b"path", b"linkpath", b"size"}
    | {b"GNU.sparse." + word for word in b"name map size realsize major minor offset numbytes".split()}
)
"""Pax keywords that change what is read; of others nothing is kept."""


class Member:
    """One member of a shard, found but with its data not yet read."""

    __slots__ = ("kind", "link", "name", "offset", "size_bytes", "sparse", "stored_bytes")

    def __init__(
        self, name: bytes, kind: str, size_bytes: int, stored_bytes: int, offset: int, link: bytes = b""
    ) -> None:
        self.name = name
        self.kind = kind
        """file, sparse, hardlink, symlink, device, directory, fifo, end-mark, or "type 'c'"."""
        self.size_bytes = size_bytes
        """Size of the contents as a user sees them."""
        self.stored_bytes = stored_bytes
        """Bytes of data in the archive, before padding."""
        self.offset = offset
        """Where its first header block begins in the (decompressed) stream, extension headers included."""
        self.link = link
        self.sparse: SparseMap = []

    @property
    def text(self) -> str:
        """The name as str; bytes that are no UTF-8 are kept by surrogateescape."""
        return self.name.decode("utf-8", "surrogateescape")


class MemberReader:
    """Reads the members of one shard in order from a window.

    Args:
        window: the stream; shared with a hot loop, which may consume plain members itself in between.
        shard: what to call the shard in errors.
        max_member_bytes: the largest contents that `read_data` builds in memory.
        reopen: gives a fresh stream of the same shard; hard links need it to find the member that they name.
    """

    def __init__(
        self, window: Window, shard: str, max_member_bytes: int, reopen: Callable[[], RawInput] | None = None
    ) -> None:
        self.window = window
        self.shard = shard
        self.max_member_bytes = max_member_bytes
        self.global_pax: dict[bytes, bytes] = {}
        self.ended = False
        """Whether the last thing read was an end mark."""
        self.gaps: list[tuple[int, int]] | None = None
        """Takes (start, end) of end marks and pax headers for all members, where a caller asks for it."""
        self._reopen = reopen
        self._links: dict[bytes, bytes] = {}

    def next(self, begun: int | None = None) -> Member | None:
        """Find the next member; leaves the window at its data. None at the end of a complete archive.

        Args:
            begun: where the member begins, when the caller has passed a header that belongs to it.

        Raises:
            TruncatedError: the stream ends without an end mark, or in the middle of something.
            HeaderError: a header is damaged; reason "garbage" where it stands behind an end mark.
        """
        window = self.window
        start = window.offset if begun is None else begun
        records: list[tuple[bytes, bytes]] = []
        long_name: bytes | None = None
        long_link: bytes | None = None
        pending = begun is not None  # whether an extension header waits for its member
        while True:
            block = window.peek(BLOCK)
            if len(block) < BLOCK:
                if self.ended and not block.strip(b"\0"):
                    return None
                if self.ended and not pending:
                    raise self.bad(_GARBAGE, window.offset, reason="garbage")
                raise self._cut("a header" if block else "the end mark (zero blocks) of the archive", start)
            if block == ZERO_BLOCK:
                if pending:
                    raise self.bad("an extension header is followed by the end mark instead of its member", start)
                self._pass_zero_blocks()
                self.global_pax = {}
                if self.gaps is not None:
                    self.gaps.append((start, window.offset))
                return Member(b"", END_MARK, 0, 0, start)
            header = self._parse(block, start)
            self.ended = False
            at = window.offset
            window.pos += BLOCK
            pending = pending or header.kind != "pax-global"
            if header.kind == "pax":
                records += self._pax_records(header, start)
            elif header.kind == "pax-global":
                self.global_pax.update(self._pax_records(header, start))
                self.global_pax = {keyword: value for keyword, value in self.global_pax.items() if value}
                if self.gaps is not None:
                    self.gaps.append((at, window.offset))
                if start == at:
                    start = window.offset  # it belongs to no member, as in tarfile
            elif header.kind == "gnu-long-name":
                long_name = self._extension(header, start).partition(b"\0")[0]
            elif header.kind == "gnu-long-link":
                long_link = self._extension(header, start).partition(b"\0")[0]
            else:
                return self._finish(header, start, records, long_name, long_link)

    def read_data(self, member: Member) -> bytes:
        """Read the member's contents, sparse holes filled and hard links followed within the archive.

        Raises:
            LimitError: they are larger than `max_member_bytes`; the data has been passed over.
            TruncatedError: the stream ends inside them.
            SampleError: a hard link whose target cannot be had.
        """
        if member.size_bytes > self.max_member_bytes:
            self.skip_data(member)
            raise self.too_large(member.text, member.offset, member.size_bytes)
        if member.kind == "hardlink":
            return self._linked(member)
        data = self.window.take(member.stored_bytes)
        if len(data) < member.stored_bytes or not self._pass_padding(member.stored_bytes):
            raise self._cut(f"the {member.stored_bytes} bytes of data of {member.text!r}", member.offset, member.text)
        if not member.sparse and member.kind != "sparse" and member.size_bytes == member.stored_bytes:
            return data
        return _expand(data, member.sparse, member.size_bytes)

    def skip_data(self, member: Member) -> None:
        """Pass over the member's data."""
        padded = (member.stored_bytes + BLOCK - 1) // BLOCK * BLOCK
        if self.window.skip(padded) < padded:
            raise self._cut(f"the {member.stored_bytes} bytes of data of {member.text!r}", member.offset, member.text)

    def bad(self, fact: str, offset: int, name: str = "", reason: str = "bad-header") -> HeaderError:
        """Build the error for a damaged header: what was found, where, and the cure."""
        member = f", member {name!r}" if name else ""
        cure = (
            "remove what follows the archive's end mark"
            if reason == "garbage"
            else "fetch or write the shard again; `--on-error skip` leaves out the rest of it"
        )
        return HeaderError(
            f"{self.shard}, byte {offset}{member}: {fact}; {cure}",
            shard=self.shard,
            member=name,
            offset=offset,
            reason=reason,
        )

    def too_large(self, name: str, offset: int, size_bytes: int) -> LimitError:
        """Build the error for a member that a record cannot hold."""
        return LimitError(
            f"{self.shard}, byte {offset}, member {name!r}: {size_bytes} bytes are more than the limit of "
            f"{self.max_member_bytes} bytes that a record may hold in memory; raise it with --max-member, or leave the "
            "field out with -f",
            shard=self.shard,
            member=name,
            offset=offset,
            size_bytes=size_bytes,
            limit_bytes=self.max_member_bytes,
        )

    def _cut(self, what: str, offset: int, name: str = "") -> TruncatedError:
        return TruncatedError(
            f"{self.shard}: the shard ends at byte {self.window.base + self.window.have} where {what} should be "
            f"(member at byte {offset}); it was cut short: fetch or write it again; `--on-error skip` keeps the "
            "samples before",
            shard=self.shard,
            member=name,
            offset=offset,
        )

    def _parse(self, block: bytes, start: int) -> Header:
        try:
            return parse_header(block)
        except ValueError as error:
            if self.ended:
                raise self.bad(_GARBAGE, self.window.offset, reason="garbage") from None
            raise self.bad(str(error), self.window.offset) from None

    def _pass_zero_blocks(self) -> None:
        window = self.window
        while window.peek(BLOCK) == ZERO_BLOCK:
            window.pos += BLOCK
        self.ended = True

    def _pass_padding(self, stored_bytes: int) -> bool:
        padding = -stored_bytes % BLOCK
        return self.window.skip(padding) == padding

    def _extension(self, header: Header, start: int) -> bytes:
        size = header.size_bytes
        if size > MAX_EXTENSION_BYTES or self.window.offset + size - start > _MAX_CHAIN_BYTES:
            fact = f"a {header.kind} header of {size} bytes is more than the {MAX_EXTENSION_BYTES} that make sense"
            raise self.bad(fact, start, reason="too-large")
        data = self.window.take(size)
        if len(data) < size or not self._pass_padding(size):
            raise self._cut(f"a {header.kind} header of {size} bytes", start)
        return data

    def _pax_records(self, header: Header, start: int) -> list[tuple[bytes, bytes]]:
        try:
            return [item for item in parse_pax(self._extension(header, start)) if item[0] in _MEANINGFUL]
        except ValueError as error:
            raise self.bad(str(error), start) from None

    def _finish(
        self,
        header: Header,
        start: int,
        records: list[tuple[bytes, bytes]],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Member:
        """Join a header with the extension records that stand before it."""
        own = dict(records)
        # an empty value takes back what is in force for all members (POSIX pax, "Keyword Precedence")
        pax = {keyword: value for keyword, value in (self.global_pax | own).items() if value}
        name = pax.get(b"path", long_name if long_name is not None else header.name)
        link = pax.get(b"linkpath", long_link if long_link is not None else header.link)
        if b"\0" in name:
            raise self.bad("the name in its pax header holds a NUL", start)
        try:
            if b"size" in pax and header.kind in ("file", "sparse"):
                header.size_bytes = parse_decimal(pax[b"size"])
            member = Member(name, header.kind, header.size_bytes, header.size_bytes, start, link)
            if header.kind == "sparse":
                self._old_gnu_sparse(header, member)
            elif header.kind == "file" and any(keyword.startswith(b"GNU.sparse.") for keyword in pax):
                self._pax_sparse(records, pax, member)
        except ValueError as error:
            raise self.bad(str(error), start, name.decode("utf-8", "replace")) from None
        return member

    def _old_gnu_sparse(self, header: Header, member: Member) -> None:
        entries = header.sparse
        more = header.sparse_continues
        while more:
            block = self.window.take(BLOCK)
            if len(block) < BLOCK:
                raise self._cut("a sparse map", member.offset, member.text)
            entries += parse_sparse_entries(block[:504])
            more = block[504] != 0
            if len(entries) > MAX_SPARSE_ENTRIES:
                raise ValueError(f"the sparse map has more than {MAX_SPARSE_ENTRIES} entries")
        member.size_bytes = header.real_size_bytes
        member.sparse = entries
        check_sparse(entries, member.stored_bytes, member.size_bytes)

    def _pax_sparse(self, records: list[tuple[bytes, bytes]], pax: dict[bytes, bytes], member: Member) -> None:
        member.name = pax.get(b"GNU.sparse.name", member.name)
        if pax.get(b"GNU.sparse.major") == b"1" and pax.get(b"GNU.sparse.minor") == b"0":
            entries = self._sparse_map_in_data(member)
        elif (found := sparse_from_pax(records)) is not None:
            entries = found
        else:
            return
        real = pax.get(b"GNU.sparse.realsize", pax.get(b"GNU.sparse.size"))
        if real is None:
            raise ValueError("a sparse member without its real size")
        member.kind = "sparse"
        member.size_bytes = parse_decimal(real)
        member.sparse = entries
        check_sparse(entries, member.stored_bytes, member.size_bytes)

    def _sparse_map_in_data(self, member: Member) -> SparseMap:
        """Read the map of sparse format 1.0, decimal lines in whole blocks before the data."""
        lines: list[bytes] = []
        rest = b""
        want = 1
        while len(lines) < want:
            block = self.window.take(BLOCK)
            member.stored_bytes -= BLOCK
            if len(block) < BLOCK or member.stored_bytes < 0:
                raise self._cut("a sparse map", member.offset, member.text)
            *whole, rest = (rest + block).split(b"\n")
            lines += whole
            if lines:
                if (pieces := parse_decimal(lines[0])) > MAX_SPARSE_ENTRIES:
                    raise ValueError(f"the sparse map has {pieces} entries, more than {MAX_SPARSE_ENTRIES}")
                want = 1 + 2 * pieces
            if len(lines) < want and len(rest) > _MAX_LINE:
                raise ValueError(f"the sparse map has the line {rest[:40]!r} instead of a number")
        numbers = [parse_decimal(line) for line in lines[1:want]]
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def _linked(self, member: Member) -> bytes:
        link = posixpath.normpath(member.link)
        if link not in self._links:
            data = self._find_target(member, link, member.offset)
            if sum(map(len, self._links.values())) + len(data) > _LINK_CACHE_BYTES:
                self._links.clear()
            self._links[link] = data
        return self._links[link]

    def _find_target(self, member: Member, link: bytes, before: int) -> bytes:
        """Read the shard again up to a link and give the contents of what it names, through links to links."""
        fault = f"{self.shard}, byte {member.offset}, member {member.text!r}: a hard link to {member.link!r}"
        facts = {"shard": self.shard, "member": member.text, "offset": member.offset, "reason": "hard-link"}
        if self._reopen is None:
            raise SampleError(f"{fault} cannot be followed in a stream that is read once; store it as a file", **facts)
        raw = self._reopen()
        target: Member | None = None
        data = b""
        try:
            again = MemberReader(Window(raw), self.shard, self.max_member_bytes)
            while (found := again.next()) is not None and found.offset < before:
                if posixpath.normpath(found.name) == link and found.kind in ("file", "sparse"):
                    target, data = found, again.read_data(found)
                else:
                    again.skip_data(found)
                    if posixpath.normpath(found.name) == link and found.kind == "hardlink":
                        target = found
        finally:
            getattr(raw, "close", lambda: None)()
        if target is None:
            raise SampleError(f"{fault}, which is not in the shard before it; write the shard again", **facts)
        if target.kind == "hardlink":
            return self._find_target(member, posixpath.normpath(target.link), target.offset)
        return data


def _expand(data: bytes, sparse: SparseMap, real_bytes: int) -> bytes:
    whole = bytearray(real_bytes)
    position = 0
    for offset, length in sparse:
        whole[offset : offset + length] = data[position : position + length]
        position += length
    return bytes(whole)
