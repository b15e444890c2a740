"""Reduce script for htsort: the average image of each class.

    htsort -k cls:int -r examples/average.py 'demo-data/digits-@4.tar' 'demo-data/average-@1.tar'

Only the sum is held in memory, so that a class may have any number of samples. `--param scale=8` sets how much larger
than the images it becomes.
"""

import io

import numpy as np
from PIL import Image

scale = 8


def setup(params):
    """Run once in each process, before its first group."""
    global scale
    scale = int(params.get("scale", scale))


def reduce_samples(key, samples):
    """Return one sample for the class `key`, made of all that have it."""
    total, count = 0, 0
    for sample in samples:
        total = total + np.asarray(Image.open(io.BytesIO(sample["png"])), dtype=float)
        count += 1
    image = Image.fromarray((total / count).round().astype("uint8"))
    encoded = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(encoded, "png")
    return {"__key__": f"average-{key}", "png": encoded.getvalue(), "count": str(count)}
