"""Outputs in fsspec's file systems, three ways to let them appear whole.

- `DeferredWriteStream`: the library keeps an upload open until it is told to commit (s3fs, gcsfs).
- `RenamedWriteStream`: a temp name beside the target, then a rename (SFTP, FTP, HDFS, disks).
- `PutWriteStream`: spooled here, then stored by one call (memory, Azure, Hugging Face, other object stores).

Never by `with fs.open(url, "wb")`, which publishes half an object when the body raises, nor by `fs.transaction`, which
all threads share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from xxhash import xxh3_128

from tarmill.errors import NotFoundError, OutputExistsError, StorageError
from tarmill.storage.base import Bytes, Stat
from tarmill.storage.file_write import temp_name
from tarmill.storage.fsspec_mount import Mount
from tarmill.storage.fsspec_read import FsspecBody, look
from tarmill.storage.pending import UploadCancelled
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.settings import StorageSettings
from tarmill.storage.spool import Spool
from tarmill.storage.upload_stream import UploadStream
from tarmill.storage.urls import mask

_BLOCK_BYTES = 8 << 20
_ONE_CALL_BYTES = 1 << 20


class FsspecWriteStream(UploadStream):
    """What the three ways do alike: look whether the name is free, and afterwards whether all bytes are there."""

    def __init__(self, mount: Mount, path: str, url: str, settings: StorageSettings, exclusive: bool) -> None:
        super().__init__(url)
        self._mount = mount
        self._path = path
        self._settings = settings
        self._exclusive = exclusive
        self._hash = xxh3_128() if settings.verify_uploads == "hash" else None

    def write_all(self, pieces: Iterable[Bytes], /) -> int:
        """Append many pieces, joined."""
        return self.write(b"".join(pieces))

    def _write(self, data: memoryview) -> None:
        if self._hash is not None:
            self._hash.update(data)
        self._append(data)

    @abstractmethod
    def _append(self, data: memoryview) -> None:
        """Send bytes, or keep them until they are sent."""

    @abstractmethod
    def _publish(self) -> None:
        """Give the object its name."""

    def _commit(self) -> Stat:
        if self._exclusive:
            self._must_not_exist()
        self._publish()
        return self._looked_at()

    def _must_not_exist(self) -> None:
        with suppress(NotFoundError):
            self._retried_look()
            shown = mask(self.url)
            raise OutputExistsError(
                f"{shown} exists already and was to be created; remove it, or allow overwriting", url=shown
            )

    def _retried_look(self) -> Stat:
        return with_retries(lambda: look(self._mount, self._path, self.url), Retrier(self._settings, self._pause))

    def _looked_at(self) -> Stat:
        if self._settings.verify_uploads == "none":
            return Stat(self.url, self.bytes_written, "", None)
        stat = self._retried_look()
        shown = mask(self.url)
        if stat.size_bytes != self.bytes_written:
            raise StorageError(
                f"writing {shown}: {self.bytes_written} bytes were written, the store has {stat.size_bytes}; either "
                "another writer works there, or the store is not to be trusted (verify_uploads=none stops asking)",
                url=shown,
                retryable=True,
                damaged=True,
            )
        if self._hash is not None:
            self._read_back(stat, self._hash.digest())
        return stat

    def _read_back(self, stat: Stat, digest: bytes) -> None:
        body = FsspecBody(self._path, self.url, self._settings, version=stat.version or None)
        found = xxh3_128()
        try:
            body.open()
            while piece := body.read(512 << 10):
                if self._stop.is_set():
                    raise UploadCancelled
                found.update(piece)
        finally:
            body.close()
        if found.digest() != digest:
            shown = mask(self.url)
            with suppress(StorageError):
                self._mount.do(lambda: self._mount.fs.rm_file(self._path), self.url, "removing")
            raise StorageError(
                f"writing {shown}: what was read back is not what was written; it was removed",
                url=shown,
                retryable=True,
                damaged=True,
            )


class DeferredWriteStream(FsspecWriteStream):
    """An upload that the library holds open; its parts go up while it is filled."""

    def __init__(self, mount: Mount, path: str, url: str, settings: StorageSettings, exclusive: bool) -> None:
        super().__init__(mount, path, url, settings, exclusive)
        self._file: Any = mount.do(
            lambda: mount.fs.open(path, "wb", block_size=_BLOCK_BYTES, autocommit=False), url, "writing"
        )

    def _append(self, data: memoryview) -> None:
        # copied, since a call that takes too long is left alone with it
        self._mount.do(partial(self._file.write, bytes(data)), self.url, "writing", _BLOCK_BYTES)

    def _publish(self) -> None:
        def end() -> None:
            self._file.close()
            self._file.commit()

        self._mount.do(end, self.url, "writing", _BLOCK_BYTES)

    def _abort(self) -> None:
        self._stop.set()
        file = self._file
        with suppress(StorageError):
            self._mount.do(file.discard, self.url, "giving up")
        file.closed = True  # its __del__ would finish the upload


class RenamedWriteStream(FsspecWriteStream):
    """A file under a temp name, renamed when it is complete."""

    def __init__(
        self, mount: Mount, path: str, url: str, settings: StorageSettings, exclusive: bool, owner: str
    ) -> None:
        super().__init__(mount, path, url, settings, exclusive)
        folder, slash, name = path.rpartition("/")
        self._temp = f"{folder}{slash}{temp_name(name, owner)}"
        self._file: Any = None
        try:
            self._file = mount.do(lambda: self._create(folder), url, "writing")
        except BaseException:
            self._abort()
            raise

    def _create(self, folder: str) -> Any:
        if folder:
            self._mount.fs.makedirs(folder, exist_ok=True)
        return self._mount.fs.open(self._temp, "wb")

    def _append(self, data: memoryview) -> None:
        self._mount.do(partial(self._file.write, bytes(data)), self.url, "writing", len(data) + _BLOCK_BYTES)

    def _publish(self) -> None:
        self._mount.do(self._file.close, self.url, "writing", _BLOCK_BYTES)
        self._mount.do(self._rename, self.url, "publishing", self.bytes_written)

    def _rename(self) -> None:
        fs = self._mount.fs
        with suppress(FileExistsError):
            fs.mv(self._temp, self._path)
        fs.invalidate_cache(self._temp)
        if fs.exists(self._temp):  # some, such as HDFS, rename onto nothing that exists, and not all of these say so
            with suppress(FileNotFoundError):
                fs.rm_file(self._path)
            fs.mv(self._temp, self._path)

    def _abort(self) -> None:
        self._stop.set()

        def remove() -> None:
            with suppress(Exception):
                if self._file is not None:
                    self._file.close()
            self._mount.fs.rm_file(self._temp)

        with suppress(StorageError):
            self._mount.do(remove, self.url, "giving up")


class PutWriteStream(FsspecWriteStream):
    """A spooled output that is stored by one call, again until that succeeds."""

    def __init__(self, mount: Mount, path: str, url: str, settings: StorageSettings, exclusive: bool) -> None:
        super().__init__(mount, path, url, settings, exclusive)
        self._spool = Spool(0, settings.scratch_dir)

    def _append(self, data: memoryview) -> None:
        if data:
            self._spool.append(bytes(data))

    def _publish(self) -> None:
        with_retries(self._put, Retrier(self._settings, self._pause))

    def _put(self) -> None:
        fs = self._mount.fs
        if self.bytes_written <= _ONE_CALL_BYTES:
            body = b"".join(self._spool.pieces())
            self._mount.do(lambda: fs.pipe_file(self._path, body), self.url, "writing", len(body))
        else:
            source = self._spool.path
            self._mount.do(lambda: fs.put_file(source, self._path), self.url, "writing", self.bytes_written)

    def _commit(self) -> Stat:
        try:
            return super()._commit()
        finally:
            self._spool.close()

    def _abort(self) -> None:
        self._stop.set()
        self._spool.close()
