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

Sources: webdataset's `wids_index.py` and `wids_specs.py`; energon's `itar.py`, `prepare.py`, `structs.py`; DALI's
`wds2idx.py` and `webdataset_loader.cc`; open_clip's `data.py`; timm's `reader_wds.py`.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tarmill.errors import SpecError
from tarmill.formats.index import Bound, ShardIndex, fields_of
from tarmill.formats.samples import Record

SIDECARS = ("wids", "energon", "dali", "sizes", "timm")
ENERGON_INFO = ".nv-meta/.info.json"
SIZES = "sizes.json"
TIMM_INFO = "_info.json"


@dataclass(frozen=True, slots=True)
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


def wids_name(stem: str) -> str:
    """Name the wids index of a data set, whose stem is the pattern's: "train" -> "train.wids.json"."""
    return f"{stem}.wids.json"


def wids_json(shards: Sequence[ShardFacts], stem: str) -> bytes:
    """Write the index that `wids.ShardListDataset` reads; the URLs are relative, so they begin where the file is."""
    entries = [
        {"url": shard.name, "md5sum": shard.md5, "nsamples": shard.samples, "filesize": shard.size_bytes}
        for shard in sorted(shards, key=lambda shard: shard.name)
    ]
    return _to_json({"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": stem, "shardlist": entries})


def energon_index_name(name: str) -> str:
    """Name the index of a shard as energon looks for it: "a.tar" -> "a.tar.idx".

    Raises:
        SpecError: energon finds an index only where the shard's name ends with ".tar".
    """
    if not name.endswith(".tar"):
        raise _refusal(name, "energon", "energon finds the index of a shard only if its name ends with '.tar'")
    return name + ".idx"


def energon_index(index: ShardIndex, shard: str) -> bytes:
    """Write the offset of each sample's first header and of the end mark, as uint64 of this machine's byte order.

    Raises:
        SpecError: the shard has what energon, which reads a sample by its bytes alone, would misread.
    """
    for bound, what in ((Bound.GLOBAL, "a pax header for all members"), (Bound.LINK, "a hard link")):
        found = next((i for i in range(len(index)) if index.bounds[i] & bound), None)
        if found is not None:
            fact = f"sample {index.key(found)!r} needs {what}, which energon does not follow"
            raise _refusal(shard, "energon", f"{fact}; write the shard again with `tarmill cat`")
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


def dali_index_name(name: str) -> str:
    """Name the index of a shard as DALI's `wds2idx.py` does: "d/a.tar" -> "d/a.idx"."""
    return name[: name.find(".", name.rfind("/") + 2)] + ".idx" if "." in name[name.rfind("/") + 2 :] else name + ".idx"


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
                raise _refusal(
                    self._shard,
                    "dali",
                    f"member {key}.{field} is stored as a {kind}, and DALI reads only contents that are stored whole; "
                    "write the shard again with `tarmill cat`",
                )
            name = f"{key}.{field}".encode("utf-8", "surrogateescape")
            if not field or len(name.split()) != 1 or name != name.strip():
                raise _refusal(
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
            raise _refusal(self._shard, "dali", "it has no sample, and DALI refuses such a shard; leave it out")
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


def refuse_compressed(shard: str, codec: str, wanted: Sequence[str]) -> None:
    """Refuse the files whose readers seek in the shard, for a shard that is compressed (`SpecError`)."""
    seeking = [name for name in ("energon", "dali") if name in wanted]
    if codec != "none" and seeking:
        raise _refusal(
            shard,
            seeking[0],
            f"it is compressed ({codec}), and its reader looks only into plain tars, by offset; unpack it with "
            f"`tarmill cat`, or leave out {' and '.join(seeking)}",
        )


def _refusal(shard: str, sidecar: str, fact: str) -> SpecError:
    return SpecError(f"{shard}: no {sidecar} index can be written: {fact}", field="write", value=sidecar, shard=shard)


def _read_json(text: bytes | None, name: str) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SpecError(f"the {name} that is there is no JSON: {error}; remove it", field="write", value=name) from None
    if not isinstance(found, dict):
        raise SpecError(f"the {name} that is there holds no JSON object; remove it", field="write", value=name)
    return found


def _dict_of(info: dict[str, Any], field: str, name: str) -> dict[str, Any]:
    found = info.get(field, {})
    if not isinstance(found, dict):
        raise SpecError(
            f"{field!r} in the {name} that is there is no JSON object; remove it", field="write", value=name
        )
    return found


def _to_json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=True) + "\n").encode()
