"""One data set through every store and every command: files, S3, a web server, Google Cloud Storage, and back."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support import fakegcs, nginx, s3_places, seaweed
from support.maps import command

pytestmark = s3_places.MARKS

SAMPLES = 60
SHOUT = "def process_sample(record):\n    record['txt'] = record['txt'].upper()\n    return record\n"


def run(cwd: Path, tool: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    done = command(list(arguments), cwd, tool=tool)
    assert done.returncode == 0, done.stderr.decode()
    return done


def test_a_data_set_goes_through_all_stores_and_commands_without_losing_a_sample(
    seaweed: seaweed.SeaweedFS,
    web: nginx.Nginx,
    gcs: fakegcs.FakeGcs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3_places.isolate(monkeypatch, seaweed.environment())
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.base)
    name = tmp_path.name
    s3, http, gs = f"s3://{s3_places.BUCKET}/{name}", web.url(name), f"gs://{fakegcs.BUCKET}/{name}"
    (tmp_path / "files").mkdir()
    (tmp_path / "shout.py").write_text(SHOUT)
    texts = {f"{number:03d}": f"Text {number} é" * (1 + number % 7) for number in range(SAMPLES)}
    for key, text in texts.items():
        (tmp_path / "files" / f"{key}.txt").write_text(text)
        (tmp_path / "files" / f"{key}.bin").write_bytes(os.urandom(3000))

    run(tmp_path, "htupload", "--samples-per-shard", "16", "files", f"{s3}/raw-@.tar")
    raw = f"{s3}/raw-{{000000..000003}}.tar"
    run(tmp_path, "tarmill", "verify", raw)
    run(tmp_path, "htmapper", "-p", "shout.py", raw, f"{http}/loud-@4.tar")
    run(tmp_path, "htshuffle", "--plan", "external", "--seed", "7", f"{http}/loud-@4.tar", f"{gs}/mixed-@3.tar.gz")
    run(tmp_path, "tarmill", "verify", f"{http}/loud-@4.tar", f"{gs}/mixed-@3.tar.gz")
    run(tmp_path, "htsort", f"{gs}/mixed-@3.tar.gz", f"{s3}/sorted-@2.tar")
    run(tmp_path, "tarmill", "verify", f"{gs}/mixed-@3.tar.gz", f"{s3}/sorted-@2.tar")
    rows = run(tmp_path, "htextract", "-q", f"{s3}/sorted-@2.tar", "-f", "__key__,txt").stdout.decode()
    assert rows.splitlines() == [f"{key}\t{text.encode().upper().decode()}" for key, text in sorted(texts.items())]
    assert seaweed.uploads(f"{name}/") == []
