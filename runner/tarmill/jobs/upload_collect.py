"""Samples from all sources into one listing: joined by key, checked for doubles, those that cannot be left out."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence

from xxhash import xxh3_64_intdigest

from tarmill import storage
from tarmill.errors import SampleError, TarmillError
from tarmill.jobs.upload_look import Looked, problem_of
from tarmill.planning.upload_listing import Entry, Found, Listing, Part
from tarmill.planning.upload_names import another_key
from tarmill.spec import UploadSpec


def hash_of_key(key: str) -> int:
    """Hash a key, to find it among many in little memory."""
    return xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))


def path_of(part: Part, key: str, base: str, prefix: str) -> str | None:
    """Give the path or URL of a field, None for a value.

    Args:
        part: of an entry.
        key: of the entry.
        base: folder of its source.
        prefix: what was put before every key.
    """
    return f"{base}{key[len(prefix) :]}.{part[0]}" if part[1] == "" else part[1]


def paths_of(entry: Entry, roots: Sequence[str], prefix: str) -> list[str]:
    """Give the paths and URLs of a sample's fields, without those that are values.

    Args:
        entry: the sample.
        roots: folder of each source.
        prefix: what was put before every key.
    """
    key, root, parts = entry
    base = roots[root] if root >= 0 else ""
    return [path for part in parts if (path := path_of(part, key, base, prefix)) is not None]


class Collector:
    """Takes samples, in order, into a listing.

    Args:
        spec: same_key, on_error.
        listing: takes the samples.
    """

    def __init__(self, spec: UploadSpec, listing: Listing) -> None:
        self.spec = spec
        self.listing = listing
        self.found = Found(listing)
        self.roots: list[str] = []
        """Folder of each source from which paths are derived."""
        self._given: set[int] = set()

    def drop(self, key: str, reason: str, message: str) -> None:
        """Leave a sample out, or raise what is wrong with it."""
        if self.spec.on_error == "fail":
            raise TarmillError(f"{message}; --on-error skip leaves such samples out", reason=reason, key=key)
        self.leave_out(key, reason, message)

    def leave_out(self, key: str, reason: str, message: str) -> None:
        """Leave a sample out, whatever the policy for errors is."""
        self.found.dropped[reason] += 1
        self.found.rejected.append({"shard": "", "key": key, "reason": reason, "message": message, "kept": False})

    def folder_trouble(self, path: str, error: OSError) -> None:
        """Leave a folder out that cannot be looked into, or raise."""
        reason, message = problem_of(error, path)
        if self.spec.on_error == "fail":
            raise TarmillError(f"{message}; --on-error skip leaves what cannot be read out", reason=reason)
        self.found.unread[reason] += 1
        self.found.rejected.append({"shard": "", "key": "", "reason": reason, "message": message, "kept": False})

    def note(self, looked: Looked) -> None:
        """Take over what a look at files told."""
        for key, reason, message in looked.problems:
            self.drop(key, reason, message)
        self.found.empty += looked.empty
        looked.problems.clear()
        looked.empty = 0

    def take_sorted(self, sources: Sequence[Iterable[Entry]]) -> None:
        """Take the samples of sources, each of which gives them in the order of keys.

        Entries of one key are one sample, where they have no field in common.
        """
        entries = heapq.merge(*sources, key=lambda entry: entry[0]) if len(sources) > 1 else iter(sources[0])
        for entry, before in self._joined(entries):
            self._take(entry, before is not None or self._is_taken(entry[0]), before)

    def take_in_order(self, entries: Iterable[Entry]) -> None:
        """Take samples whose keys may come in any order."""
        for entry in entries:
            taken = self._is_taken(entry[0])
            self._given.add(hash_of_key(entry[0]))
            self._take(entry, taken)

    def explicit(self, entry: Entry) -> tuple[Part, ...]:
        """Give the parts of an entry with their paths written out."""
        key, root, parts = entry
        if root < 0:
            return parts
        base, prefix = self.roots[root], self.spec.key_prefix
        return tuple((part[0], path_of(part, key, base, prefix), *part[2:]) for part in parts)

    def _take(self, entry: Entry, is_taken: bool, before: Entry | None = None) -> None:
        """Take a sample; one whose key is taken gets another, or is an error."""
        if is_taken:
            key = entry[0]
            if self.spec.same_key == "fail":
                raise self._same_key(entry, before)
            name = another_key(key, self._is_taken)
            self._given.add(hash_of_key(name))
            self.found.renamed += 1
            entry = (name, -1, self.explicit(entry))
        self.listing.add(entry)

    def _joined(self, entries: Iterator[Entry]) -> Iterator[tuple[Entry, Entry | None]]:
        """Join neighbours of one key whose fields differ.

        Yields:
            Samples; those which cannot be joined with the one before of that key, with that one.
        """
        held: Entry | None = None
        before: Entry | None = None
        for entry in entries:
            if held is None or held[0] != entry[0]:
                if held is not None:
                    yield held, before
                held, before = entry, None
            elif _clash(held[2], entry[2]):
                yield held, before
                held, before = entry, held
            else:
                both = {part[0]: part for part in (*self.explicit(held), *self.explicit(entry))}
                held = (entry[0], -1, tuple(both[name] for name in sorted(both)))
        if held is not None:
            yield held, before

    def _same_key(self, entry: Entry, before: Entry | None) -> SampleError:
        key = entry[0]
        shown = [
            storage.mask(next((part[1] for part in self.explicit(one) if part[1]), "a value"))  # its first file
            for one in (entry, before)
            if one is not None
        ]
        where = f"{shown[0]} and {shown[1]}" if len(shown) > 1 else f"{shown[0]} and a sample before it"
        return SampleError(
            f"there are two samples with the key {key!r}: {where}; give them different keys (--key-prefix, "
            "--key-function, --key-column), or let the second have another one with --same-key rename",
            key=key,
            reason="same-key",
        )

    def _is_taken(self, key: str) -> bool:
        return bool(self._given) and hash_of_key(key) in self._given


def _clash(parts: Iterable[Part], others: Iterable[Part]) -> bool:
    """Tell whether two sets of parts have a field in common; the same value twice is none."""
    known = {part[0]: part for part in parts}
    return any(part[0] in known and (known[part[0]] != part or part[1] is not None) for part in others)
