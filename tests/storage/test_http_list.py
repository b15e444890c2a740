"""Listings of web servers."""

from __future__ import annotations

import pytest
from support.nginx import Nginx
from support.webserver import Reply, WebServer

from tarmill import storage
from tarmill.errors import AccessError, StorageError
from tarmill.storage.http_list import Entry, parse_index, split_prefix

JSON = b"""[
{ "name":"a b.tar", "type":"file", "mtime":"Wed, 21 Oct 2015 07:28:00 GMT", "size":7 },
{ "name":"sub", "type":"directory", "mtime":"Wed, 21 Oct 2015 07:28:00 GMT" },
{ "name":"sock", "type":"other", "mtime":"Wed, 21 Oct 2015 07:28:00 GMT" }
]"""
HTML = b"""<html><body><a href="../">../</a><a href="?C=M;O=A">sort</a><a href="/">root</a><a href="/data/">here</a>
<a href="a%20b.tar">a b.tar</a> 21-Oct-2015 07:28 7 <a href="/data/c.tar">c.tar</a> <a href="c.tar">again</a>
<a href="http://h/data/d.tar">d</a> <a href="http://elsewhere/data/e.tar">e</a> <a href="sub/">sub/</a>
<a href="sub/deep.tar">deep</a> <a name="x">no link</a> <a href="#top">top</a></body></html>"""


def test_nginx_json_tells_names_sizes_and_times() -> None:
    assert parse_index(JSON, "application/json", "http://h/data/") == [Entry("a b.tar", 7, 1445412480.0), Entry("sub/")]


def test_html_tells_the_links_one_step_down() -> None:
    found = parse_index(HTML, "text/html; charset=utf-8", "http://h/data/")
    assert [entry.name for entry in found] == ["a b.tar", "c.tar", "d.tar", "sub/"]


@pytest.mark.parametrize(("body", "kind"), [
    (b"{}x", "application/json"), (b'[{"name": 1}]', "application/json"), (b"\x1f\x8b", "application/gzip"), (b"", ""),
])  # fmt: skip
def test_what_is_no_index_is_refused_with_other_ways_to_name_shards(body: bytes, kind: str) -> None:
    with pytest.raises(StorageError, match=r"cannot be listed.*@shards.txt.*autoindex_format json"):
        parse_index(body, kind, "http://h/data/")


@pytest.mark.parametrize(("prefix", "parts"), [
    ("http://h", ("http://h/", "")), ("http://h/", ("http://h/", "")), ("http://h/a", ("http://h/", "a")),
    ("http://h/a%20b/c%20d", ("http://h/a%20b/", "c d")),
])  # fmt: skip
def test_a_prefix_is_a_folder_and_the_beginning_of_names(prefix: str, parts: tuple[str, str]) -> None:
    assert split_prefix(prefix) == parts


def test_a_prefix_with_a_query_cannot_be_listed() -> None:
    with pytest.raises(StorageError, match="query"):
        split_prefix("http://h/a?sig=1")


@pytest.mark.real
def test_an_html_index_lists_what_the_json_index_does(web: Nginx) -> None:
    for name in ("lists/b.tar", "lists/a b%.tar", "lists/sub/é.tar"):
        storage.write_bytes(web.url(name), b"x")
    by_json = [stat.url.removeprefix(web.url("lists/")) for stat in storage.list_urls(web.url("lists/"))]
    by_html = [stat.url.removeprefix(web.url("html/lists/")) for stat in storage.list_urls(web.url("html/lists/"))]
    assert by_json == by_html == ["a%20b%25.tar", "b.tar", "sub/%C3%A9.tar"]


@pytest.mark.real
def test_a_server_without_an_index_is_told_with_other_ways_to_name_shards(web: Nginx) -> None:
    with pytest.raises(AccessError, match=r"cannot be listed.*numbered|cannot be listed.*by number"):
        list(storage.list_urls(web.url("nolist/")))


def test_folders_without_end_are_an_error() -> None:
    class Endless(dict[str, Reply]):
        def get(self, key: str, default: object = None) -> Reply:  # type: ignore[override]
            return Reply(200, b'[{"name":"x","type":"directory","mtime":""}]', {"Content-Type": "application/json"})

    with WebServer() as server:
        server.replies = Endless()
        with pytest.raises(StorageError, match="more than 32 folders deep"):
            list(storage.list_urls(f"{server.base}/"))
