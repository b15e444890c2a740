"""`-` in real processes: pipes, files, and readers that go away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.bodies import body_of

from tarmill import storage
from tarmill.errors import StorageError

COPY = """
import sys
from tarmill import storage
window = memoryview(bytearray(100_000))
with storage.open_read("-") as stream, storage.open_write("-") as out:
    print(stream.seekable(), file=sys.stderr)
    while count := stream.readinto(window):
        out.write(window[:count])
"""
POUR = """
import sys
from tarmill import storage
try:
    with storage.open_write("-") as out:
        while True:
            out.write(b"x" * 100_000)
except BrokenPipeError:
    sys.exit(7)
"""


def test_a_pipe_is_copied_whole() -> None:
    body = body_of(1_000_003)
    run = subprocess.run([sys.executable, "-c", COPY], input=body, capture_output=True, check=True)
    assert run.stdout == body
    assert run.stderr == b"False\n"


@pytest.mark.parametrize("start", [0, 512])
def test_a_redirected_file_can_seek_only_from_its_start(tmp_path: Path, start: int) -> None:
    (tmp_path / "in").write_bytes(body_of(300_000))
    with (tmp_path / "in").open("rb", buffering=0) as file:
        file.seek(start)
        run = subprocess.run([sys.executable, "-c", COPY], stdin=file, capture_output=True, check=True)
    assert run.stdout == body_of(300_000)[start:]
    assert run.stderr == b"True\n" if start == 0 else b"False\n"


def test_a_reader_that_goes_away_is_a_broken_pipe_not_a_storage_error() -> None:
    with subprocess.Popen([sys.executable, "-c", POUR], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 10)
        process.stdout.close()
        assert process.wait(60) == 7


def test_a_full_disk_under_standard_output_is_told() -> None:
    with open("/dev/full", "wb") as full:
        run = subprocess.run([sys.executable, "-c", POUR], stdout=full, stderr=subprocess.PIPE, check=False)
    assert b"NoSpaceError" in run.stderr


@pytest.mark.parametrize("call", [
    storage.stat, lambda url: storage.read_ranges(url, [(0, 1)]), storage.list_urls, storage.delete,
])  # fmt: skip
def test_what_a_stream_cannot_do_is_refused(call: object) -> None:
    with pytest.raises(StorageError, match="stream"):
        call("-")  # type: ignore[operator]
