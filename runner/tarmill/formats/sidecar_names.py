"""Names of the small files that other readers want beside shards, and what a shard's own name rules out (pure).

`sidecars` has what is in them.
"""

from __future__ import annotations

from collections.abc import Sequence

from tarmill.errors import SpecError

SIDECARS = ("wids", "energon", "dali", "sizes", "timm")
OF_EACH_SHARD = ("energon", "dali")
"""Those that have a file beside each shard."""
_SEEKING = ("wids", "energon", "dali")
"""Those whose readers look into shards by offset."""
ENERGON_INFO = ".nv-meta/.info.json"
SIZES = "sizes.json"
TIMM_INFO = "_info.json"


def wids_name(stem: str) -> str:
    """Name the wids index of a data set, whose stem is the pattern's: "train" -> "train.wids.json"."""
    return f"{stem}.wids.json"


def energon_index_name(name: str) -> str:
    """Name the index of a shard as energon looks for it: "a.tar" -> "a.tar.idx".

    Raises:
        SpecError: energon finds an index only where the shard's name ends with ".tar".
    """
    if not name.endswith(".tar"):
        raise refusal(name, "energon", "energon finds the index of a shard only if its name ends with '.tar'")
    return name + ".idx"


def dali_index_name(name: str) -> str:
    """Name the index of a shard as DALI's `wds2idx.py` does: "d/a.tar" -> "d/a.idx"."""
    return name[: name.find(".", name.rfind("/") + 2)] + ".idx" if "." in name[name.rfind("/") + 2 :] else name + ".idx"


def refuse_compressed(shard: str, codec: str, wanted: Sequence[str]) -> None:
    """Refuse the files whose readers seek in the shard, for a shard that is compressed (`SpecError`)."""
    seeking = [name for name in _SEEKING if name in wanted]
    if codec != "none" and seeking:
        raise refusal(
            shard,
            seeking[0],
            f"it is compressed ({codec}), and its reader looks only into plain tars, by offset; write plain tars (of "
            f"one that is there, by `tarmill cat`), or leave out {', '.join(seeking)}",
        )


def refusal(shard: str, sidecar: str, fact: str) -> SpecError:
    """Make the error that says why a shard can have no file of this kind."""
    return SpecError(f"{shard}: no {sidecar} index can be written: {fact}", field="index", value=sidecar, shard=shard)
