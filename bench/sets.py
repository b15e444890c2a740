"""The benchmark's data sets: fixed seeds, plain USTAR from a writer of their own, so that no tool judges itself.

images  .jpg of lognormal size around 112 KB, incompressible, and a .cls of a few digits
text    .txt of about 2 KB that compresses as prose does, and a .json of about 300 bytes
tiny    .cls of 2 bytes and .id of 16: 99 % of the shard is tar

Each set is a few shards on disk (`base`) and a longer list of names that link to them (`view`): a job over the view is
long enough for start-up not to swamp it, while the whole data stays near 100 MB. Every tool gets the same names.

Samples to be sorted should not have their keys from 32 links to one shard. "text.unique" and "images.unique" are real
copies whose keys all differ, as long as the lists of links, on the disk for as long as the batch runs. Only digits of
names are patched, and the checksums of their headers; the bytes beside them are those of the base.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import mmap
import os
import random
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Fields = dict[str, bytes]

FORMAT = 4  # raised when the bytes of the sets change: makes the old ones stale
ONE = "one"
HALF_MASK = (1 << 128) - 1
DIGITS = 8
"""Of a sample's number in its key: all keys of a set are equally long."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How large a set is at scale 1, where all sets together are about 100 MB on disk."""

    name: str
    samples: int
    """In all shards of the base together."""
    shards: int
    links: int
    """How often the view names each shard."""


PLANS = {
    "images": Plan("images", 400, 1, 30),
    "text": Plan("text", 8_000, 1, 16),
    "tiny": Plan("tiny", 8_000, 1, 8),
}
LINKS = {"gz": 10, "long": 150, "wide": 80, "s3": 6}
COPIES = {"images": 30, "text": 32}
"""Of variants. Compression makes a sample dear: fewer are enough. Reading a small field of large samples costs next to
nothing: it takes many of them, which no tool writes, for start-up not to be all that is measured. Two processes against
one is a question of throughput: those lists are long enough for the processes' start not to decide it. A store that
runs on the same processors is slower than all that is measured: its lists are short."""


@dataclass(frozen=True, slots=True)
class View:
    """A list of shards to give to a tool, with what it must find in there."""

    name: str
    """"text", "text.gz", ..."""
    shards: list[str]
    pattern: str
    """The same list in shard notation."""
    samples: int
    members: int
    tar_bytes: int
    """Size of the shards as they lie on disk (compressed where they are)."""
    digest: str
    """Of all samples' keys, fields and contents, whatever their order."""
    field: str
    """The small field that an extraction asks for."""
    largest_sample: int
    key_bytes: int = 0
    """Length of each key, where keys differ."""


def sample_digest(key: str, fields: Fields) -> int:
    """Hash one sample; the sum over a data set (modulo 2**128) depends on no order."""
    state = hashlib.blake2b(digest_size=16)
    for part in [key.encode(), *(piece for name in sorted(fields) for piece in (name.encode(), fields[name]))]:
        state.update(b"%d:" % len(part))
        state.update(part)
    return int.from_bytes(state.digest(), "big")


def shown(total: int) -> str:
    """Write a sum of sample digests as text."""
    return f"{total & HALF_MASK:032x}"


def make(name: str, scale: float, folder: Path) -> tuple[View, View, View]:
    """Make a set, or find it made before, and return it in three lengths: base, view, and one single sample.

    Args:
        name: a plan's; with ".gz" compressed, with ".long" or ".wide" a list that names its shards more often.
        scale: multiplies the number of samples on disk.
        folder: where the sets are kept; the set's own folder is named by everything that decides its bytes.
    """
    name, _, variant = name.partition(".")
    plan = replace(PLANS[name], links=LINKS.get(variant, PLANS[name].links))
    samples = max(plan.shards, int(plan.samples * scale))
    suffix = ".tar.gz" if variant == "gz" else ".tar"
    home = folder / f"{name}-{samples}x{plan.links}-v{FORMAT}{suffix.removeprefix('.tar').replace('.', '-')}"
    stamp = home / "stamp.json"
    if not stamp.exists():
        _build(plan, samples, home, suffix)
    base, view, one = (_placed(home.resolve(), facts) for facts in json.loads(stamp.read_text()))
    return base, view, one


def make_unique(name: str, scale: float, folder: Path, copies: Path) -> tuple[View, View, View]:
    """Make a set of samples whose keys all differ, and return it as `make` does; base is two shards of the view.

    Args:
        name: a plan's.
        scale: as for `make`.
        folder: where the set that is copied from is kept.
        copies: where the copies go.
    """
    base, linked, one = make(name, scale, folder)
    home = copies / f"{name}.unique"
    template = Template(Path(base.shards[0]), name)
    for kind, count in (("base", 2), ("view", COPIES[name])):
        (home / kind).mkdir(parents=True)
        for index in range(count):
            shard = home / kind / f"{name}-{index:06d}.tar"
            if kind == "base":
                shard.symlink_to(Path("..") / "view" / shard.name)
            else:
                template.write(shard, index)

    def view(kind: str, count: int) -> View:
        shards = sorted(str(shard) for shard in (home / kind).iterdir())
        return replace(
            linked,
            name=f"{name}.unique",
            shards=shards,
            pattern=str(home / kind / f"{name}-{{000000..{count - 1:06d}}}.tar"),
            samples=base.samples * count,
            members=base.members * count,
            tar_bytes=base.tar_bytes * count,
            digest=digest_of_shards(map(Path, shards))[1] if kind == "base" else "",
            key_bytes=template.key_bytes,
        )

    short, long = (view(kind, len(list((home / kind).iterdir()))) for kind in ("base", "view"))
    return short, long, replace(one, name=f"{name}.unique", key_bytes=template.key_bytes)


FILES = {"text.files": 30_000, "images.files": 4_000, "text.morefiles": 120_000, "images.morefiles": 16_000}
"""Samples of the folders that are packed: enough for start-up not to be what is measured. Two processes against one is
a question of throughput and takes more, which nobody packs by tarfile."""
_FOLDER_SAMPLES = 1000


def make_files(name: str, scale: float, folder: Path, memory: Path) -> tuple[View, View, View]:
    """Write the samples of a set as files, a thousand samples in a folder, and return it as `make` does.

    Contents are those of the set, over and over; `digest` is that of the members (see `members_digest`).

    Args:
        name: one of `FILES`.
        scale: as for `make`.
        folder: where the set is kept.
        memory: where the files go.
    """
    whole, name = name, name.partition(".")[0]
    base, _, _ = make(name, scale, folder)
    samples = [fields for shard in base.shards for _, fields in samples_of(Path(shard))]
    views = []
    for kind, count in (("base", len(samples)), ("view", int(FILES[whole] * min(1.0, scale))), (ONE, 1)):
        home = memory / whole / kind
        total = size = largest = 0
        for index in range(count):
            fields = samples[index % len(samples)]
            place = f"{name}/{index // _FOLDER_SAMPLES:04d}"
            if index % _FOLDER_SAMPLES == 0:
                (home / place).mkdir(parents=True)
            for field, body in fields.items():
                member = f"{place}/{index:08d}.{field}"
                (home / member).write_bytes(body)
                size += 512 + (len(body) + 511 & ~511)
                if kind != "view":
                    total += member_digest(member, body)
            largest = max(largest, sum(map(len, fields.values())))
        members = count * len(samples[0])
        views.append(View(whole, [str(home)], str(home), count, members, size, shown(total), "", largest))
    return views[0], views[1], views[2]


def samples_of(shard: Path) -> Iterator[tuple[str, Fields]]:
    """Read the samples of one of our shards, whose members stand together."""
    with tarfile.open(shard) as tar:
        for key, members in itertools.groupby(tar, key=lambda member: member.name.partition(".")[0]):
            yield key, {m.name.partition(".")[2]: tar.extractfile(m).read() for m in members}  # type: ignore[union-attr]


def member_digest(name: str, body: bytes) -> int:
    """Hash one member; the sum over all depends on no order, and on no sample."""
    return sample_digest(name, {"": body})


def members_digest(shards: Iterable[Path]) -> tuple[int, str]:
    """Count and hash the files in shards, by `tarfile`."""
    count = total = 0
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.isfile():
                    content = tar.extractfile(member)
                    assert content is not None
                    total += member_digest(member.name, content.read())
                    count += 1
    return count, shown(total)


def make_keys(scale: float) -> tuple[View, View, View]:
    """Name a number of keys that a row makes up itself, in the three lengths."""
    counts = (1_000_000, int(10_000_000 * min(1.0, scale)), 1)
    return tuple(View("keys", [], "", count, 0, 0, "", "", 0, 16) for count in counts)  # type: ignore[return-value]


class Template:
    """A shard of which copies are made that differ in their keys."""

    def __init__(self, shard: Path, prefix: str) -> None:
        self.data = np.fromfile(shard, np.uint8)
        keys, places = [], []
        for at, name in headers_of(memoryview(self.data)):
            key, _, _ = name.decode().partition(".")
            keys.append(key)
            places.append(at)
        folder, _, digits = keys[0].rpartition("/")
        assert (folder, len(digits)) == (prefix, DIGITS), keys[0]
        self.key_bytes = len(keys[0])
        _, sample = np.unique(keys, return_inverse=True)
        self.sample: NDArray[Any] = sample
        self.samples = int(sample.max()) + 1
        at_digits = len(prefix) + 1 + np.arange(DIGITS)
        self.places: NDArray[Any] = np.array(places)
        self.digits = self.places[:, None] + at_digits
        self.checksums = self.places[:, None] + np.arange(148, 154)
        old = self.data[self.checksums] - ord("0")
        self.rest = old.astype(np.int64) @ (8 ** np.arange(5, -1, -1)) - self.data[self.digits].sum(
            axis=1, dtype=np.int64
        )

    def write(self, path: Path, copy: int) -> None:
        """Write one copy; the keys of all copies together are as good as random, and no two are the same."""
        number = _mixed((self.sample + copy * self.samples).astype(np.uint32))
        text = _HEX[number.astype(">u4").view(np.uint8)].reshape(len(number), DIGITS)
        self.data[self.digits] = text
        checksum = self.rest + text.sum(axis=1, dtype=np.int64)
        self.data[self.checksums] = ord("0") + (checksum[:, None] >> np.arange(15, -1, -3) & 7)
        with path.open("wb") as out:
            self.data.tofile(out)
            os.fsync(out.fileno())  # so that it is not written to the disk while others are measured


def _mixed(number: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Permute the numbers of 32 bits at random (MurmurHash3's closing step, each part of which can be undone)."""
    number = (number ^ number >> 16) * np.uint32(0x85EBCA6B)
    number = (number ^ number >> 13) * np.uint32(0xC2B2AE35)
    return number ^ number >> 16


_HEX = np.frombuffer(b"".join(b"%02x" % number for number in range(256)), "u1").reshape(256, 2)


def headers_of(data: memoryview | mmap.mmap) -> Iterator[tuple[int, bytes]]:
    """Go through the headers of a shard of plain USTAR: where each is, and its name."""
    at = 0
    while data[at]:
        yield at, bytes(data[at : at + 100]).rstrip(b"\0")
        at += 512 + (int(bytes(data[at + 124 : at + 135]), 8) + 511 & ~511)


def keys_of_shards(shards: Iterable[Path]) -> list[bytes]:
    """List the keys of all samples of such shards in the order in which they stand there."""
    keys: list[bytes] = []
    for shard in shards:
        last = b""
        with shard.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for _, name in headers_of(data):
                key = name[: name.index(b".", name.rfind(b"/") + 1)]
                if key != last:
                    keys.append(key)
                last = key
    return keys


def _placed(home: Path, facts: dict[str, Any]) -> View:
    """Make a view of the stamp's facts, which hold no absolute path: the folder may have moved."""
    view = View(**facts)
    return replace(view, shards=[str(home / shard) for shard in view.shards], pattern=str(home / view.pattern))


def _build(plan: Plan, samples: int, home: Path, suffix: str) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    content = list(_CONTENT[plan.name](samples))
    base = home / "base"
    base.mkdir()
    for index in range(plan.shards):
        _write(base / f"{plan.name}-{index:06d}{suffix}", content[index :: plan.shards])
    one = home / ONE
    one.mkdir()
    _write(one / f"{plan.name}-000000{suffix}", content[:1])
    view = home / "view"
    view.mkdir()
    for index in range(plan.shards * plan.links):
        target = Path("..") / "base" / f"{plan.name}-{index % plan.shards:06d}{suffix}"
        (view / f"{plan.name}-{index:06d}{suffix}").symlink_to(target)
    views = [
        _view(plan, base, content, 1, suffix),
        _view(plan, view, content, plan.links, suffix),
        _view(plan, one, content[:1], 1, suffix),
    ]
    (home / "stamp.json").write_text(json.dumps([asdict(view) for view in views], indent=1))


def _view(plan: Plan, folder: Path, content: list[tuple[str, Fields]], links: int, suffix: str) -> View:
    shards = sorted(folder.iterdir())
    fields = list(content[0][1])
    return View(
        name=plan.name + suffix.removeprefix(".tar"),
        shards=[f"{folder.name}/{shard.name}" for shard in shards],
        pattern=f"{folder.name}/{plan.name}-{{000000..{len(shards) - 1:06d}}}{suffix}",
        samples=len(content) * links,
        members=len(content) * links * len(fields),
        tar_bytes=sum(shard.stat().st_size for shard in shards),
        digest=shown(links * sum(sample_digest(key, fields) for key, fields in content)),
        field=fields[-1] if plan.name != "tiny" else fields[0],
        largest_sample=max(sum(map(len, fields.values())) for _, fields in content),
    )


def _images(samples: int) -> Iterator[tuple[str, Fields]]:
    chance = random.Random("images")
    for index in range(samples):
        size = max(2_000, int(chance.lognormvariate(11.5, 0.5)))
        body = b"\xff\xd8\xff\xe0\0\x10JFIF\0" + chance.randbytes(size) + b"\xff\xd9"
        yield f"images/{index:08d}", {"jpg": body, "cls": b"%d" % chance.randrange(1000)}


def _text(samples: int) -> Iterator[tuple[str, Fields]]:
    chance = random.Random("text")
    letters = "etaoinshrdlucmfwypvbgk"
    weights = range(len(letters), 0, -1)
    words = ["".join(chance.choices(letters, weights, k=chance.randint(2, 9))) for _ in range(20_000)]
    cumulative = list(itertools.accumulate(1 / (rank + 8) for rank in range(len(words))))
    for index in range(samples):
        prose = " ".join(chance.choices(words, cum_weights=cumulative, k=max(20, int(chance.gauss(350, 90)))))
        meta = {
            "url": f"https://example.org/{chance.getrandbits(64):016x}",
            "lang": chance.choice(["en", "de", "fr", "pl"]),
            "score": round(chance.random(), 6),
            "title": " ".join(chance.choices(words, cum_weights=cumulative, k=12)),
            "sha": f"{chance.getrandbits(256):064x}",
            "words": prose.count(" ") + 1,
        }
        yield f"text/{index:08d}", {"txt": prose.encode(), "json": json.dumps(meta).encode()}


def _tiny(samples: int) -> Iterator[tuple[str, Fields]]:
    chance = random.Random("tiny")
    for index in range(samples):
        yield f"{index:08d}", {"cls": b"%02d" % chance.randrange(100), "id": b"%016x" % chance.getrandbits(64)}


_CONTENT = {"images": _images, "text": _text, "tiny": _tiny}


def _write(path: Path, samples: Iterable[tuple[str, Fields]]) -> None:
    """Write one shard; a .gz as `gzip -6` would."""
    with path.open("wb") as out:
        packer = zlib.compressobj(6, wbits=31) if path.suffix == ".gz" else None
        for key, fields in samples:
            for name, body in fields.items():
                member = _header(f"{key}.{name}".encode(), len(body)) + body + bytes(-len(body) % 512)
                out.write(packer.compress(member) if packer else member)
        end = bytes(1024)
        out.write(packer.compress(end) + packer.flush() if packer else end)


def _header(name: bytes, size: int) -> bytes:
    """Format one USTAR header (POSIX.1-1988) of a regular file."""
    block = b"%-100b%07o\0%07o\0%07o\0%011o\0%011o\0%8b0%100bustar\x0000%32b%32b%07o\0%07o\0%167b" % (
        name.ljust(100, b"\0"),
        0o644,
        0,
        0,
        size,
        1_700_000_000,
        b" " * 8,
        bytes(100),
        b"bench".ljust(32, b"\0"),
        b"bench".ljust(32, b"\0"),
        0,
        0,
        bytes(167),
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def digest_of_shards(shards: Iterable[Path]) -> tuple[int, str]:
    """Count and hash the samples of shards by `tarfile`, an independent judge of what a tool wrote."""
    samples = total = 0
    for shard in shards:
        opener = gzip.open if shard.suffix == ".gz" else open
        with opener(shard, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            key, fields = "", Fields()
            for member in tar:
                folder, slash, last = member.name.rpartition("/")
                stem, _, field = last.partition(".")
                if folder + slash + stem != key and fields:
                    samples, total = samples + 1, total + sample_digest(key, fields)
                    fields = {}
                key = folder + slash + stem
                content = tar.extractfile(member)
                fields[field] = content.read() if content else b""
            if fields:
                samples, total = samples + 1, total + sample_digest(key, fields)
    return samples, shown(total)
