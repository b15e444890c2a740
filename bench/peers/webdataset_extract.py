"""Print one field of every sample, a line each, by webdataset, which reads only that field's members."""

import sys

import webdataset
from common import arguments

options = arguments(__doc__, field={"required": True})
suffix = "." + options.field
write = sys.stdout.write
for sample in webdataset.WebDataset(
    options.shards, shardshuffle=False, select_files=lambda name: name.endswith(suffix)
):
    write(sample[options.field].decode() + "\n")
