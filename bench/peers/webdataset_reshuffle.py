"""Shuffle shards by webdataset as its documentation does: in random order, through a buffer, into a ShardWriter.

A buffer of 5,000 samples moves a sample by thousands of places at most, not anywhere; a real permutation by it takes a
buffer as large as the data.
"""

import random

import webdataset
from common import arguments

options = arguments(
    __doc__,
    out={"required": True},
    maxcount={"type": int, "required": True, "help": "samples per output shard"},
    buffer={"type": int, "default": 5000},
)
chance = random.Random(7)
samples = webdataset.WebDataset(options.shards, shardshuffle=len(options.shards), seed=7).shuffle(
    options.buffer, rng=chance
)
pattern = f"{options.out}/out-%06d.tar"
count = 0
with webdataset.ShardWriter(
    pattern, maxcount=options.maxcount, encoder=False, mtime=1_700_000_000, verbose=False
) as sink:
    for sample in samples:
        sink.write(sample)
        count += 1
print(count)
