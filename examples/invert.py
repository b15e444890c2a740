"""Script for htmapper: decode each image, invert it, enlarge it, encode it again.

    htmapper -p examples/invert.py 'demo-data/digits-@4.tar' 'demo-data/inverted-@4.tar'

`--param scale=8` sets how much larger it becomes.
"""

import io

from PIL import Image, ImageOps

scale = 4


def setup(params):
    """Run once in each process, before its first sample."""
    global scale
    scale = int(params.get("scale", scale))


def process_sample(record):
    """Return the sample with its image changed; every other field goes on as it is."""
    image = Image.open(io.BytesIO(record["png"]))
    image = ImageOps.invert(image).resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    encoded = io.BytesIO()
    image.save(encoded, "png")
    record["png"] = encoded.getvalue()
    return record
