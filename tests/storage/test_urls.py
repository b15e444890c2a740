from __future__ import annotations

import pytest

from tarmill import storage
from tarmill.errors import SpecError
from tarmill.storage.urls import local_path


@pytest.mark.parametrize(("url", "scheme"), [
    ("x.tar", "file"), ("/a:b/c.tar", "file"), ("FILE:///x", "file"), ("-", "-"), ("./-", "file"),
    ("https://h/x", "https"),
    ("HTTP://h/x", "http"), ("mem://a", "mem"), ("pipe:curl x", "pipe"), ("s3+x://b/k", "s3+x"), ("a-@10.tar", "file"),
])  # fmt: skip
def test_a_scheme_is_what_stands_before_two_slashes(url: str, scheme: str) -> None:
    assert storage.scheme_of(url) == scheme


@pytest.mark.parametrize(("text", "shown"), [
    ("http://h/x.tar", "http://h/x.tar"),
    ("http://me:pw@h/x", "http://me:***@h/x"),
    ("http://me:p@w@h:80/x", "http://me:***@h:80/x"),
    ("http://me:p/w@h/x", "http://me:***@h/x"),
    ("http://t0ken@h/x", "http://***@h/x"),
    ("http://h:8080/a@b/c@d", "http://h:8080/a@b/c@d"),
    ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
    ("GET http://me:pw@h/x failed, then https://you:pw2@h", "GET http://me:***@h/x failed, then https://you:***@h"),
    ("https://h/x?X-Amz-Signature=abc&part=1", "https://h/x?X-Amz-Signature=***&part=1"),
    ("https://h/x?part=1&access_token=abc", "https://h/x?part=1&access_token=***"),
    ("/data/me:pw@10.0.0.1/x", "/data/me:pw@10.0.0.1/x"),
    ("train-@10.tar", "train-@10.tar"),
])  # fmt: skip
def test_passwords_are_masked_and_nothing_else(text: str, shown: str) -> None:
    assert storage.mask(text) == shown


def test_the_repr_of_a_stat_holds_no_password() -> None:
    assert "pw" not in repr([storage.Stat("http://me:pw@h/x", 1, "v", None)])


@pytest.mark.parametrize(("url", "path"), [
    ("a%20b", "a%20b"), ("file:///a%20b%FF", "/a b\udcff"), ("file://localhost/x", "/x"), ("../x", "../x"),
])  # fmt: skip
def test_file_urls_are_unquoted_and_paths_are_not(url: str, path: str) -> None:
    assert local_path(url) == path


@pytest.mark.parametrize("url", ["file://server/x", "", "file://", "a\0b"])
def test_what_names_no_local_file_is_refused(url: str) -> None:
    with pytest.raises(SpecError):
        storage.stat(url)


@pytest.mark.parametrize(("folder", "name", "joined"), [
    ("out", "a b%.tar", "out/a b%.tar"), ("out/", "x", "out/x"), ("", "x", "x"), ("mem://o/", "x y", "mem://o/x y"),
    ("http://h/o", "_tarmill/a b#.json", "http://h/o/_tarmill/a%20b%23.json"), ("http://h/o/?sig=1", "x", "http://h/o/x?sig=1"),
    ("file:///o", "a b", "file:///o/a%20b"),
])  # fmt: skip
def test_names_are_quoted_where_the_scheme_needs_it(folder: str, name: str, joined: str) -> None:
    assert storage.join_url(folder, name) == joined


def test_pipe_urls_are_refused_with_the_reason_and_what_to_use_instead() -> None:
    with pytest.raises(SpecError, match=r"hides its failures.*\| tool -"):
        storage.open_read("pipe:curl -s http://me:pw@h/x.tar")


@pytest.mark.parametrize("url", ["fpt://me:pw@h/x", "s4://bucket/key"])
def test_unknown_schemes_name_the_known_ones(url: str) -> None:
    known = r"known are plain paths, `-`, file://, .*gs://, http://, https://, mem://.* and what an installed fsspec"
    with pytest.raises(SpecError, match=known) as caught:
        storage.store_for(url)
    assert "pw" not in str(caught.value)


def test_an_unknown_way_to_verify_is_refused() -> None:
    with pytest.raises(SpecError, match="none, size, hash"):
        storage.StorageSettings(verify_uploads="md5")
