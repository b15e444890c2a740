"""Reads what `--index` writes by the very libraries it is meant for; `make test-readers` runs it, and fetches 5 GB.

The tests of every day read the same files by the rules that these libraries publish, and wids' by wids itself.
"""

from __future__ import annotations

import importlib
import struct
import subprocess
import sys
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path

SAMPLES = {f"{n:02}": (f"a caption of {n}", n % 3) for n in range(20)}
SPLIT = 'split_parts: {train: ["train-{0..2}.tar"], val: ["train-3.tar"], test: []}\n'
DATASET = """\
sample_type: {__module__: megatron.energon, __class__: CaptioningSample}
field_map: {image: png, caption: txt}
"""


def png(shade: int) -> bytes:
    """Draw an image of 8 x 8 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes([shade]) * 24) * 8
    head = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pack(folder: Path, tools: Path) -> None:
    """Make files, and shards of them in another order, with the by-products of all readers."""
    (folder / "files").mkdir()
    for key, (caption, label) in SAMPLES.items():
        for field, data in (("png", png(int(key))), ("txt", caption.encode()), ("cls", b"%d" % label)):
            (folder / "files" / f"{key}.{field}").write_bytes(data)
    options = ["-q", "--shuffle", "--seed", "1", "--index", "wids,energon,dali,sizes,timm"]
    subprocess.run([tools / "htupload", *options, "files", "train-@4.tar"], cwd=folder, check=True)
    (folder / ".nv-meta" / "split.yaml").write_text(SPLIT)
    (folder / ".nv-meta" / "dataset.yaml").write_text(DATASET)


def by_energon(folder: Path) -> dict[str, str]:
    """Read captions by key, of the part for training and of that for validation."""
    energon = importlib.import_module("megatron.energon")
    config = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    found: list[tuple[str, str]] = []
    for part in ("train", "val"):
        samples = energon.get_val_dataset(folder, split_part=part, batch_size=1, worker_config=config)
        for batch in energon.get_loader(samples):
            found += zip(batch.__key__, batch.caption, strict=True)
    assert len(found) == len(SAMPLES), f"energon gave {len(found)} samples instead of {len(SAMPLES)}"
    return dict(found)


def by_timm(folder: Path) -> tuple[int, list[tuple[tuple[int, int], int]]]:
    """Tell how many samples timm expects, and read size and label of the images."""
    readers = importlib.import_module("timm.data.readers.reader_factory")
    reader = readers.create_reader("wds/", root=str(folder), split="train", is_training=False, batch_size=4)
    return len(reader), [(image.size, label) for image, label in reader]


def main() -> None:
    """Pack, read by each, and compare; an AssertionError tells what differs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pack(folder, Path(sys.argv[1]).resolve())
        assert by_energon(folder) == {key: caption for key, (caption, _) in SAMPLES.items()}
        print(f"megatron-energon {version('megatron-energon')}: {len(SAMPLES)} samples, as they are")
        expected, images = by_timm(folder)
        assert expected == len(SAMPLES), f"timm expects {expected} samples"
        assert sorted(images) == sorted(((8, 8), label) for _, label in SAMPLES.values())
        print(f"timm {version('timm')}: {len(images)} images and labels, as they are")


if __name__ == "__main__":
    main()
