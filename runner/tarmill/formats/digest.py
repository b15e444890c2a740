"""The proof's arithmetic: a digest per sample that ignores the order of fields, and a multiset hash over samples.

Digest of a field: xxh3_128 of its contents, seeded by xxh3_64 of the field's name. Let S be the sum of a sample's field
digests modulo 2^128. Digest of the sample: S + xxh3_128(key + ".", seed = S modulo 2^64), modulo 2^128. The hash of a
set of samples is the sum of their digests modulo 2^128: it does not depend on order or on grouping into shards, it
changes when a sample is lost, doubled or altered, and sums of parts add up to the sum of the whole.

xxh3 is no cryptographic hash: this proves against accidents, not against an adversary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

MASK_64 = (1 << 64) - 1
MASK_128 = (1 << 128) - 1


def field_seed(field: bytes) -> int:
    """Give the seed that a field's name puts into the digest of its contents."""
    return xxh3_64_intdigest(field)


def sample_digest(key: str, fields: Mapping[str, Any]) -> int:
    """Digest one sample from its key and its fields (name -> bytes), as an integer below 2^128."""
    total = 0
    for name, body in fields.items():
        total += xxh3_128_intdigest(body, field_seed(name.encode("utf-8", "surrogateescape")))
    stem = key.encode("utf-8", "surrogateescape") + b"."
    return (total + xxh3_128_intdigest(stem, total & MASK_64)) & MASK_128


def to_hex(digest: int) -> str:
    """Write a digest or a multiset hash as 32 hex digits, as manifests hold it."""
    return f"{digest & MASK_128:032x}"
