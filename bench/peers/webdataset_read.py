"""Read shards by webdataset, not decoded."""

import webdataset
from common import arguments, drain, without_dunders

options = arguments(__doc__)
samples = webdataset.WebDataset(options.shards, shardshuffle=False)
drain(samples, options.digest, without_dunders)
