"""Write a small real data set: scikit-learn's 1,797 handwritten digits, each a PNG image and its class.

usage: digits.py FOLDER [SHARDS]      writes FOLDER/digits-0.tar ... with members 00000.png, 00000.cls, ...

The images come with scikit-learn, so nothing is downloaded. They are 8 x 8 pixels of 17 shades; source: E. Alpaydin and
C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, CC BY 4.0.
"""

import io
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from tarmill import ShardWriter


def encode(pixels):
    """Encode one array of shades 0 to 16 as a PNG of shades 0 to 255."""
    encoded = io.BytesIO()
    Image.fromarray((pixels * (255 / 16)).round().astype("uint8")).save(encoded, "png")
    return encoded.getvalue()


def main(folder, shards=4):
    """Write the digits, in their own order, into shards of nearly the same size."""
    digits = load_digits()
    count = len(digits.images)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with ShardWriter(f"{folder}/digits-{shard}.tar") as writer:
            for index in range(count * shard // shards, count * (shard + 1) // shards):
                image, digit = digits.images[index], digits.target[index]
                writer.write({"__key__": f"{index:05d}", "png": encode(image), "cls": str(digit)})
    print(f"{count} handwritten digits in {shards} shards: {folder}/digits-@{shards}.tar")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
