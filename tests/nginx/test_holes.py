"""Holes of a plain WebDAV configuration that ours closes: each attack is tried on both.

An attack gives True where it worked. It leaves nothing behind that another one would trip over: names are its own.
"""

from __future__ import annotations

import base64
import select
import socket
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import pytest
from support.waiting import wait_for
from support.webstore import BASIC, CONNECTIONS, MAX_BODY_BYTES, PlainStore, WebStore, give

pytestmark = pytest.mark.real

Server = WebStore | PlainStore
ATTACKS: list[Callable[[Server], bool]] = []


def attack(function: Callable[[Server], bool]) -> Callable[[Server], bool]:
    ATTACKS.append(function)
    return function


# -- what is written, moved and removed --------------------------------------------------------------------------------


@attack
def an_object_is_moved_onto_a_protected_one_without_a_password(server: Server) -> bool:
    server.put("open.tar", b"forged")
    kept = server.put("protected/moved.tar", b"kept")
    server.ask("MOVE", "/open.tar", headers={"Destination": f"{server.base}/protected/moved.tar"}, login=None)
    return kept.read_bytes() != b"kept"


@attack
def an_object_is_copied_onto_a_protected_one_without_a_password(server: Server) -> bool:
    server.put("open.tar", b"forged")
    kept = server.put("protected/copied.tar", b"kept")
    server.ask("COPY", "/open.tar", headers={"Destination": f"{server.base}/protected/copied.tar"}, login=None)
    return kept.read_bytes() != b"kept"


@attack
def a_writer_moves_an_object_out_of_a_folder_that_is_not_his(server: Server) -> bool:
    kept = server.put("protected/away.tar", b"kept")
    server.ask("MOVE", "/protected/away.tar", headers={"Destination": f"{server.base}/away.tar"})
    return not kept.exists()


@attack
def an_object_is_put_without_a_password(server: Server) -> bool:
    return server.ask("PUT", "/nobody.tar", b"x", login=None).status == 201


@attack
def an_object_is_deleted_without_a_password(server: Server) -> bool:
    kept = server.put("nobodys.tar", b"kept")
    server.ask("DELETE", "/nobodys.tar", login=None)
    return not kept.exists()


@attack
def a_folder_is_deleted_with_all_that_is_in_it(server: Server) -> bool:
    for target in ("/set/", "/set//", "/set/.", "/set/./", "/set%2F", "/x/../set/", "/set/part/..", "//set/"):
        kept = [server.put("set/a.tar", b"a"), server.put("set/part/b.tar", b"b")]
        for headers in ({}, {"Depth": "infinity"}):
            server.ask("DELETE", target, headers=headers)
            if not all(path.exists() for path in kept):
                return True
    return False


@attack
def hidden_files_are_written_read_and_deleted(server: Server) -> bool:
    kept = server.put(".secret", b"hidden")
    targets = ["/.secret", "/%2esecret", "/a/.git/config", "/.upload/planted", "/a/..b"]
    written = [server.ask("PUT", target, b"x").status for target in targets[2:]]
    read = [server.ask("GET", target).body for target in targets[:2]]
    server.ask("DELETE", "/.secret")
    return 201 in written or b"hidden" in read or not kept.exists()


@attack
def uploads_under_way_are_listed_and_read(server: Server) -> bool:
    server.put(".upload/9/0000000009", b"half")
    return b"half" in server.ask("GET", "/.upload/9/0000000009").body


@attack
def files_outside_are_read_by_dots(server: Server) -> bool:
    (server.folder / "outside").write_bytes(b"outside")
    up = (
        "/files../outside",
        "/../outside",
        "/a/../../outside",
        "/%2e%2e/outside",
        "/..%2foutside",
        "/a/..%2f..%2foutside",
    )
    return any(server.ask("GET", target).body == b"outside" for target in up)


@attack
def the_health_check_is_overwritten(server: Server) -> bool:
    before = server.ask("GET", "/healthz").body
    if server.ask("PUT", "/healthz", b"all is well").status < 300:
        return True
    return server.ask("GET", "/healthz").body != before or (server.root / "healthz").exists()


@attack
def files_outside_are_read_through_a_symbolic_link(server: Server) -> bool:
    (server.folder / "linked").write_bytes(b"outside")
    links = [server.root / "link", server.root / "links"]
    links[0].symlink_to(server.folder / "linked")
    links[1].symlink_to(server.folder)
    try:
        return b"outside" in [server.ask("GET", target).body for target in ("/link", "/links/linked")]
    finally:
        for link in links:
            link.unlink()


# -- versions ----------------------------------------------------------------------------------------------------------


@attack
def a_writer_chooses_the_etag(server: Server) -> bool:
    etags = []
    for body in (b"one body", b"another."):
        server.ask("PUT", "/dated.tar", body, {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"})
        etags.append(server.ask("HEAD", "/dated.tar").headers.get("ETag"))
    return etags[0] is not None and etags[0] == etags[1]


@attack
def an_object_that_was_to_be_new_is_overwritten(server: Server) -> bool:
    kept = server.put("exclusive.tar", b"kept")
    server.ask("PUT", "/exclusive.tar", b"mine", {"If-None-Match": "*"})
    return kept.read_bytes() != b"kept"


@attack
def a_condition_is_ignored_and_an_update_lost(server: Server) -> bool:
    conditions = [
        {"If-Match": '"of-another-version"'},
        {"If-Unmodified-Since": "Thu, 01 Jan 2026 00:00:00 GMT"},
        {"If-None-Match": server.ask("HEAD", "/conditional.tar").headers.get("ETag", '"x"')},
    ]
    for method in ("PUT", "DELETE"):
        for headers in conditions:
            kept = server.put("conditional.tar", b"kept")
            server.ask(method, "/conditional.tar", b"mine" if method == "PUT" else None, headers)
            if not kept.exists() or kept.read_bytes() != b"kept":
                return True
    return False


# -- what comes out ----------------------------------------------------------------------------------------------------


@attack
def a_stored_page_runs_in_browsers(server: Server) -> bool:
    server.ask("PUT", "/page.html", b"<script>alert(1)</script>")
    answer = server.ask("GET", "/page.html")
    assert answer.status == 200
    return answer.headers["Content-Type"] == "text/html" and "sandbox" not in answer.headers.get(
        "Content-Security-Policy", ""
    )


@attack
def a_stored_index_hides_what_is_in_a_folder(server: Server) -> bool:
    server.ask("PUT", "/indexed/index.html", b"[]")
    return b"index.html" not in server.ask("GET", "/indexed/").body


@attack
def secrets_of_clients_are_in_the_log(server: Server) -> bool:
    secret = uuid.uuid4().hex
    server.put("logged.tar", b"x")
    server.put("object.tar", b"x")
    for target in (f"/object.tar/below?token={secret}", f"/logged.tar?token={secret}", f"/absent.tar?token={secret}"):
        for method in ("GET", "PUT", "DELETE"):
            server.ask(method, target, b"x" if method == "PUT" else None)
    for wrong in (f"{secret}:", f"{secret}:x", f"me:{secret}"):  # a token in the place of the name
        login = "Basic " + base64.b64encode(wrong.encode()).decode()
        server.ask("GET", "/logged.tar", login=login)
        server.ask("PUT", "/logged.tar", b"x", login=login)
        server.ask("PUT", "/logged.tar", b"x", {"If-Match": "x"}, login=login)
    server.ask("GET", f"http://me:{secret}@127.0.0.1:{server.port}/logged.tar")
    last = f"/{uuid.uuid4().hex}"
    server.ask("GET", last)
    wait_for(lambda: last in server.logs(), what="the log")
    return secret in server.logs()


# -- too much, too slow ------------------------------------------------------------------------------------------------


def begin(server: Server, *lines: str, rest: bytes = b"") -> socket.socket:
    """Send the beginning of a request."""
    connection = socket.create_connection(("127.0.0.1", server.port), 20)
    connection.sendall("".join(f"{line}\r\n" for line in lines).encode() + rest)
    return connection


def waits(connection: socket.socket, wait_s: float, trickle: Iterable[bytes] = (b"",)) -> bool:
    """Tell whether the server still waits for more, after each piece for so long; it may answer or hang up instead."""
    for piece in trickle:
        try:
            connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            return False
        if select.select([connection], [], [], wait_s)[0]:
            return False
    # where this machine has stood still, the server gets the time to do what was due
    return not select.select([connection], [], [], 2)[0]


@attack
def a_header_that_trickles_holds_a_connection(server: Server) -> bool:
    with begin(server, "GET / HTTP/1.1", "Host: x", rest=b"X-Slow: ") as connection:
        return waits(connection, 0.1, [b"s"] * 30)


@attack
def a_body_that_stops_holds_a_connection(server: Server) -> bool:
    head = ["PUT /slow.tar HTTP/1.1", "Host: x", f"Authorization: {BASIC}", "Content-Length: 100", ""]
    with begin(server, *head, rest=b"begin") as connection:
        return waits(connection, 3)


@attack
def a_body_of_a_stranger_is_waited_for(server: Server) -> bool:
    with begin(server, "PUT /slow.tar HTTP/1.1", "Host: x", "Content-Length: 100", "", rest=b"begin") as connection:
        return waits(connection, 2)


@attack
def one_address_takes_all_connections(server: Server) -> bool:
    head = ["PUT /many.tar HTTP/1.1", "Host: x", f"Authorization: {BASIC}", "Content-Length: 100", ""]
    with ExitStack() as stack:
        many = [stack.enter_context(begin(server, *head, rest=b"begin")) for _ in range(CONNECTIONS + 1)]
        answered, _, _ = select.select(many, [], [], 5)
        refused = [connection for connection in answered if b" 429 " in connection.recv(100)]
    server.put("free.tar", b"x")
    wait_for(lambda: server.ask("GET", "/free.tar").status == 200, what="the connections to end")
    return not refused


@attack
def a_body_of_any_size_is_stored(server: Server) -> bool:
    body = bytes(MAX_BODY_BYTES + 1)
    chunks = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    ways = [("Content-Length", str(len(body)), body), ("Transfer-Encoding", "chunked", chunks)]
    for name, value, sent in ways:
        head = [
            "PUT /huge.tar HTTP/1.1",
            "Host: x",
            f"Authorization: {BASIC}",
            f"{name}: {value}",
            "Connection: close",
            "",
        ]
        with begin(server, *head) as connection:
            try:
                connection.sendall(sent)
                status = connection.recv(100).split()[1]
            except (BrokenPipeError, ConnectionResetError):  # it did not wait for the whole body
                status = b"413"
        if status != b"413" or (server.root / "huge.tar").exists():
            return True
    return False


@pytest.mark.parametrize("works", ATTACKS, ids=lambda function: function.__name__)
def test_open_in_a_plain_configuration_and_closed_in_ours(
    plain: PlainStore, store: WebStore, works: Callable[[Server], bool]
) -> None:
    assert works(plain), "the attack itself does not work"
    assert not works(store)


# -- what nginx holds by itself, and must go on holding ----------------------------------------------------------------


@pytest.mark.parametrize("which", ["plain", "store"])
def test_a_folder_is_not_replaced_by_an_object_nor_deleted_by_its_name(
    request: pytest.FixtureRequest, which: str
) -> None:
    server: Server = request.getfixturevalue(which)
    kept = server.put("folder/kept.tar", b"kept")
    for method, target in [
        ("PUT", "/folder"),
        ("PUT", "/folder/"),
        ("DELETE", "/folder"),
        ("PUT", "/folder/kept.tar/"),
    ]:
        assert server.ask(method, target, b"x" if method == "PUT" else None).status in (405, 409), (method, target)
    assert kept.read_bytes() == b"kept"


@pytest.mark.parametrize("which", ["plain", "store"])
def test_nothing_is_written_outside_by_dots(request: pytest.FixtureRequest, which: str) -> None:
    server: Server = request.getfixturevalue(which)
    (server.folder / "victim").write_bytes(b"kept")
    up = [
        "/../victim",
        "/a/../../victim",
        "/%2e%2e/victim",
        "/..%2fvictim",
        "/a/%2e%2e%2f%2e%2e%2fvictim",
        "/..%00/victim",
    ]
    for target in up:
        assert server.ask("PUT", target, b"x").status in (400, 404, 405), target
        assert server.ask("DELETE", target).status in (400, 404, 405), target
    assert (server.folder / "victim").read_bytes() == b"kept"


def test_a_plain_server_writes_through_symbolic_links_and_ours_does_not_start_on_them(plain: PlainStore) -> None:
    def plant(server: Server) -> None:
        outside = server.folder / "outside-of-the-volume"
        outside.mkdir()
        give(outside)
        (server.root / "planted").symlink_to(outside)

    plant(plain)
    try:
        assert plain.ask("PUT", "/planted/x", b"through").status == 201
        assert (plain.folder / "outside-of-the-volume" / "x").read_bytes() == b"through"
    finally:
        (plain.root / "planted").unlink()
    with pytest.raises(RuntimeError, match=r"holds symbolic links.*/planted"), WebStore(plant):
        pass


METHODS = [
    "MOVE",
    "COPY",
    "MKCOL",
    "PROPFIND",
    "PROPPATCH",
    "LOCK",
    "UNLOCK",
    "OPTIONS",
    "POST",
    "PATCH",
    "TRACE",
    "LINK",
]


@pytest.mark.parametrize("method", METHODS)
def test_a_writer_has_no_other_methods(store: WebStore, method: str) -> None:
    kept = store.put("methods/kept.tar", b"kept")
    headers = {"Destination": f"{store.base}/methods/made.tar"}
    for target in ("/methods/kept.tar", "/methods/", "/methods/made.tar", "/healthz", "/.upload/"):
        assert store.ask(method, target, headers=headers).status == 405, target
    assert [path.name for path in kept.parent.iterdir()] == ["kept.tar"]


def test_nothing_that_is_served_makes_a_symbolic_link(store: WebStore) -> None:
    link = store.folder / "a-target"
    tries = [("PUT", {"Content-Type": "inode/symlink"}), ("PUT", {"Link": f"<{link}>"}), ("PUT", {"X-Link": str(link)})]
    for number, (method, headers) in enumerate(tries):
        assert store.ask(method, f"/made/{number}", str(link).encode(), headers).status in (201, 204)
    for method in METHODS:
        store.ask(method, "/made/0", str(link).encode(), {"Destination": f"{store.base}/made/{method}"})
    assert all(path.is_file() and not path.is_symlink() for path in (store.root / "made").iterdir())
    assert not [path for path in store.root.rglob("*") if path.is_symlink()]
