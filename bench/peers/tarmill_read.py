"""Read shards by tarmill's library, not decoded."""

from common import arguments, drain, without_dunders

from tarmill import open_shards

options = arguments(__doc__)
drain(open_shards("::".join(options.shards)), options.digest, without_dunders)
