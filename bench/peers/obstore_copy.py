"""Copy objects from S3 to S3 by obstore's streams: bytes in, bytes out, nothing looked at. Options are tarmill's."""

from urllib.parse import urlsplit

import obstore
from common import arguments, outputs
from obstore.store import S3Store

PIECE_BYTES = 512 << 10
PART_BYTES = 8 << 20

options = arguments(__doc__, out={"required": True})
config = {"checksum_algorithm": "CRC64NVME", "unsigned_payload": True}
stores: dict[str, S3Store] = {}


def found(url: str) -> tuple[S3Store, str]:
    parts = urlsplit(url)
    if parts.netloc not in stores:
        stores[parts.netloc] = S3Store(
            parts.netloc, config=config, client_options={"allow_http": True}, region="us-east-1"
        )
    return stores[parts.netloc], parts.path.lstrip("/")


for source, name in outputs("", options.shards):
    body = obstore.get(*found(source)).stream(min_chunk_size=PIECE_BYTES)
    with obstore.open_writer(*found(f"{options.out}/{name}"), buffer_size=PART_BYTES, max_concurrency=4) as writer:
        for piece in body:
            writer.write(piece)
