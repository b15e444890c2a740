"""Small files beside shards from which other readers start without a scan: their bytes, from an index (pure).

| for | file | where |
|---|---|---|
| wids | `<data set>.wids.json`: url, md5sum, nsamples, filesize of each shard | the data set's folder |
| Megatron-Energon | `<shard>.tar.idx`: n+1 offsets; `.nv-meta/.info.json`: samples of each shard | shard; data set |
| DALI | `<shard>.idx`, version 1.2: extension, offset, size and name of each member | the shard's folder |
| open_clip | `sizes.json`: samples of each shard, by base name | the first shard's folder |
| timm | `_info.json`: samples and shards of each split | the data set's folder |

All of these readers split names as `base_plus_ext` does, so this key function is the only one they can be written for.
Files that several data sets of a folder share are brought up to date: what they say of other shards stays.

Sources: wids' `wids_index.py`, `wids_specs.py`, `wids_mmtar.py` (0.1.11); energon's `itar.py`, `prepare.py`,
`structs.py`, `metadata.py` (7.4.1); DALI's `wds2idx.py` and `webdataset_loader.cc`; open_clip's `data.py`; timm's
`reader_wds.py` (1.0.31).
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from typing import Any

from tarmill.errors import SpecError
from tarmill.formats.index import Bound, ShardIndex, fields_of
from tarmill.formats.samples import Record
from tarmill.formats.sidecar_names import ENERGON_INFO, SIZES, TIMM_INFO, refusal
from tarmill.values import valueclass

_WIDS_NAME_BYTES = 100


@valueclass
class ShardFacts:
    """What data set files say of one shard."""

    name: str
    """Relative to the data set's folder."""
    samples: int
    size_bytes: int
    """Of the file, as it is stored."""
    md5: str = ""
    """md5sum of the file, 32 hex digits; only wids needs it."""

    @property
    def base_name(self) -> str:
        """The name without folders."""
        return self.name.rpartition("/")[2]


def data_set_file(kind: str, stem: str, shards: Sequence[ShardFacts], known: bytes | None) -> bytes:
    """Write the file of one of `SIDECARS` that stands for a whole data set.

    Args:
        kind: any but "dali", which has none.
        stem: of the data set's pattern.
        shards: all of the data set, in order.
        known: the file as it was, where there is one.

    Raises:
        SpecError: the file as it was is none of this kind.
    """
    if kind == "wids":
        return wids_json(shards, stem)
    if kind == "energon":
        return energon_info(shards, known)
    return sizes_json(shards, known) if kind == "sizes" else timm_info(shards, stem, known)


def without_data_set(kind: str, stem: str, names: Sequence[str], known: bytes) -> bytes | None:
    """Take a data set out of such a file; None where nothing is left, so that the file can go.

    Args:
        kind, stem, known: as for `data_set_file`.
        names: of the data set's shards, relative to its folder.

    Raises:
        SpecError: the file is none of this kind.
    """
    if kind == "wids":
        return None
    if kind == "sizes":
        gone = {name.rpartition("/")[2] for name in names}
        left = {name: count for name, count in _read_json(known, SIZES).items() if name not in gone}
        return _to_json(left) if left else None
    file, part, gone = (
        (ENERGON_INFO, "shard_counts", set(names)) if kind == "energon" else (TIMM_INFO, "splits", {stem})
    )
    info = _read_json(known, file)
    left = {name: told for name, told in _dict_of(info, part, file).items() if name not in gone}
    return _to_json(info | {part: left}) if left else None


def wids_json(shards: Sequence[ShardFacts], stem: str) -> bytes:
    """Write the index that `wids.ShardListDataset` reads; the URLs are relative, so they begin where the file is."""
    entries = [
        {"url": shard.name, "md5sum": shard.md5, "nsamples": shard.samples, "filesize": shard.size_bytes}
        for shard in sorted(shards, key=lambda shard: shard.name)
    ]
    return _to_json({"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": stem, "shardlist": entries})


def check_for_wids(record: Record, shard: str) -> None:
    """Refuse a sample that wids would misread; for `index_shard(..., visit=...)`.

    Raises:
        SpecError: wids knows only members whose name and contents are those of one plain header.
    """
    key = record["__key__"]
    room = _WIDS_NAME_BYTES - 1 - len(key.encode("utf-8", "surrogateescape"))
    for field, place in fields_of(record).items():
        if place[2] in ("hardlink", "sparse"):
            fact = f"member {key}.{field} is stored as a {place[2]}, which wids passes over"
            raise refusal(shard, "wids", f"{fact}; write the shard again with `tarmill cat`")
        if len(field.encode("utf-8", "surrogateescape")) > room:
            fact = f"member {key}.{field} has a name of more than {_WIDS_NAME_BYTES} bytes, of which wids reads a part"
            raise refusal(shard, "wids", f"{fact}; give its sample a shorter key")


def energon_index(index: ShardIndex, shard: str) -> bytes:
    """Write the offset of each sample's first header and of the end mark, as uint64 of this machine's byte order.

    Raises:
        SpecError: the shard has what energon, which reads a sample by its bytes alone, would misread.
    """
    for bound, what in ((Bound.GLOBAL, "a pax header for all members"), (Bound.LINK, "a hard link")):
        found = next((i for i in range(len(index)) if index.bounds[i] & bound), None)
        if found is not None:
            fact = f"sample {index.key(found)!r} needs {what}, which energon does not follow"
            raise refusal(shard, "energon", f"{fact}; write the shard again with `tarmill cat`")
    return (index.starts + array("Q", [index.end])).tobytes()


def energon_info(shards: Sequence[ShardFacts], known: bytes | None = None) -> bytes:
    """Write how many samples each shard has; their order is the data set's. Shards without samples are left out.

    Args:
        shards: of this data set.
        known: the file as it was, which may know other shards too; they stay before those that are new.
    """
    info = _read_json(known, ENERGON_INFO)
    counts = {**_dict_of(info, "shard_counts", ENERGON_INFO), **{shard.name: shard.samples for shard in shards}}
    return _to_json(
        {**info, "energon_version": info.get("energon_version")}
        | {"shard_counts": {name: count for name, count in counts.items() if count}}
    )


class DaliIndex:
    """Collects DALI's index while a shard is indexed: `index_shard(..., visit=dali.add)`, then `to_bytes`."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._lines: list[bytes] = []

    def add(self, record: Record) -> None:
        """Add the line of one sample.

        Raises:
            SpecError: DALI cannot read one of its members by offset and size, or not tell its name from the next.
        """
        key, line = record["__key__"], []
        for field, (offset, size, kind) in fields_of(record).items():
            if kind in ("hardlink", "sparse"):
                raise refusal(
                    self._shard,
                    "dali",
                    f"member {key}.{field} is stored as a {kind}, and DALI reads only contents that are stored whole; "
                    "write the shard again with `tarmill cat`",
                )
            name = f"{key}.{field}".encode("utf-8", "surrogateescape")
            if not field or len(name.split()) != 1 or name != name.strip():
                raise refusal(
                    self._shard,
                    "dali",
                    f"member {f'{key}.{field}'!r} has a blank in its name or nothing after the dot; blanks separate "
                    "the fields of DALI's index: rename the member",
                )
            line.append(b"%s %d %d %s" % (field.encode("utf-8", "surrogateescape"), offset, size, name))
        self._lines.append(b" ".join(line))

    def to_bytes(self) -> bytes:
        """Give the file's bytes.

        Raises:
            SpecError: there is no sample; DALI refuses an index without any.
        """
        if not self._lines:
            raise refusal(self._shard, "dali", "it has no sample, and DALI refuses such a shard; leave it out")
        return b"v1.2 %d\n%s\n" % (len(self._lines), b"\n".join(self._lines))


def sizes_json(shards: Sequence[ShardFacts], known: bytes | None = None) -> bytes:
    """Write how many samples each shard has, by base name, as open_clip and datacomp read it.

    Args:
        shards: of this data set.
        known: the file as it was, which may know other shards too.
    """
    return _to_json({**_read_json(known, SIZES), **{shard.base_name: shard.samples for shard in shards}})


def timm_info(shards: Sequence[ShardFacts], split: str, known: bytes | None = None) -> bytes:
    """Write one split as timm reads it (`split=` of its `ReaderWds`).

    Args:
        shards: of this split, in order.
        split: its name.
        known: the file as it was, which may know other splits too.
    """
    info = _read_json(known, TIMM_INFO)
    splits = _dict_of(info, "splits", TIMM_INFO)
    before = splits.get(split)
    told = {
        "name": split,
        "num_samples": sum(shard.samples for shard in shards),
        "filenames": [shard.name for shard in shards],
        "shard_lengths": [shard.samples for shard in shards],
    }
    return _to_json(info | {"splits": splits | {split: (before if isinstance(before, dict) else {}) | told}})


def _read_json(text: bytes | None, name: str) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SpecError(f"the {name} that is there is no JSON: {error}; remove it", field="index", value=name) from None
    if not isinstance(found, dict):
        raise SpecError(f"the {name} that is there holds no JSON object; remove it", field="index", value=name)
    return found


def _dict_of(info: dict[str, Any], field: str, name: str) -> dict[str, Any]:
    found = info.get(field, {})
    if not isinstance(found, dict):
        raise SpecError(
            f"{field!r} in the {name} that is there is no JSON object; remove it", field="index", value=name
        )
    return found


def _to_json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=True) + "\n").encode()
