"""Copy shards sample by sample by webdataset, one output shard for each input shard.

`--mtime default` is webdataset's own default (the time now, a float, which costs a PAX header on every member);
`--mtime integer` is its cheaper mode. `--level` gives a gzip level of our choice in place of its 9.
"""

import gzip

import webdataset
from common import arguments, outputs

options = arguments(
    __doc__,
    out={"required": True},
    mtime={"choices": ["default", "integer"], "default": "integer"},
    level={"type": int},
)
mtime = 1_700_000_000 if options.mtime == "integer" else None
count = 0
for source, target in outputs(options.out, options.shards):
    if options.level is None:
        writer = webdataset.TarWriter(target, encoder=False, mtime=mtime)
    else:
        packed = gzip.open(target, "wb", compresslevel=options.level)  # noqa: SIM115
        writer = webdataset.TarWriter(packed, encoder=False, mtime=mtime, compress=False)
    with writer:
        for sample in webdataset.WebDataset([source], shardshuffle=False):
            writer.write(sample)
            count += 1
    if options.level is not None:
        packed.close()
print(count)
