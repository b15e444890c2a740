"""Read shards by the standard library's tarfile as a stream, and group the members into samples."""

import tarfile
from collections.abc import Iterator

from common import arguments, drain


def samples(shards: list[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for shard in shards:
        with tarfile.open(shard, "r|*") as tar:
            key, fields = "", {}
            for member in tar:
                name = member.name
                dot = name.index(".", name.rfind("/") + 1)
                if name[:dot] != key:
                    if fields:
                        yield key, fields
                    key, fields = name[:dot], {}
                fields[name[dot + 1 :]] = tar.extractfile(member).read()  # type: ignore[union-attr]
            if fields:
                yield key, fields


options = arguments(__doc__)
drain(samples(options.shards), options.digest, lambda pair: pair)
