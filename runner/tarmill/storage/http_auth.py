"""Whose credentials go to which web server: the URL's own, the environment's, those of netrc; never on to other hosts.

In this order, the first that applies:
1. `http://user:password@host/` (percent-encoded), for that URL's host;
2. TARMILL_HTTP_TOKEN, sent as `Authorization: Bearer ...`, or
3. TARMILL_HTTP_USER and TARMILL_HTTP_PASSWORD, sent as basic authentication: both to the hosts of the URLs that the
   user names, or only to those of the comma-separated TARMILL_HTTP_HOSTS (`host` or `host:port`);
4. $NETRC, or ~/.netrc, by host name.
A redirect to another origin gets what netrc holds for that very host, nothing else.
"""

from __future__ import annotations

import base64
import netrc
import os
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from tarmill.errors import AccessError, SpecError
from tarmill.storage.urls import HIDDEN, mask
from tarmill.values import valueclass

_PORTS = {"http": 80, "https": 443}


@valueclass
class Target:
    """A URL taken apart: `url` is without user and password, `credentials` are (user, password) or None."""

    url: str
    scheme: str
    host: str
    port: int
    credentials: tuple[str, str] | None

    def __repr__(self) -> str:
        return f"Target({self.url!r})"

    @property
    def origin(self) -> tuple[str, str, int]:
        """What must be the same for credentials to be sent (RFC 6454)."""
        return self.scheme, self.host, self.port


def split_target(url: str) -> Target:
    """Take an http(s) URL apart.

    Raises:
        SpecError: it has no host, a port that is none, or a fragment.
    """
    shown = mask(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SpecError(
            f"{shown!r} is no URL that can be used ({mask(str(error)) if '@' not in url else 'host or port'}); "
            "reserved characters in user names and passwords are written as %40 (@), %2F (/), %3A (:)",
            field="url",
            value=shown,
        ) from None
    if not parts.hostname:
        raise SpecError(f"{shown!r} names no host; expected http(s)://host/path", field="url", value=shown)
    if "#" in url:
        raise SpecError(
            f"{shown!r} has a `#`, which begins a fragment that no server sees; write %23 where it is part of a name",
            field="url",
            value=shown,
        )
    credentials = None
    authority = parts.netloc
    if "@" in authority:
        userinfo, _, authority = authority.rpartition("@")
        user, _, password = userinfo.partition(":")
        credentials = unquote(user), unquote(password)
    scheme = parts.scheme.lower()
    rest = url.split("://", 1)[1][len(parts.netloc) :]
    if not rest.startswith("/"):
        rest = "/" + rest
    return Target(f"{scheme}://{authority}{rest}", scheme, parts.hostname.lower(), port or _PORTS[scheme], credentials)


def authorization(target: Target, first: Target, environ: Mapping[str, str] = os.environ) -> str | None:
    """Choose the Authorization header for `target`, reached (by redirects) from the URL `first` that the user named."""
    same = target.origin == first.origin or (
        target.host == first.host and (first.scheme, first.port, *target.origin[::2]) == ("http", 80, "https", 443)
    )
    if not same:
        return _basic(_from_netrc(target.host, environ, default=False))
    if first.credentials:
        return _basic(first.credentials)
    if _allowed(target, environ):
        if token := environ.get("TARMILL_HTTP_TOKEN", "").strip():
            return f"Bearer {token}"
        if user := environ.get("TARMILL_HTTP_USER"):
            return _basic((user, environ.get("TARMILL_HTTP_PASSWORD", "")))
    return _basic(_from_netrc(target.host, environ, default=True))


def _allowed(target: Target, environ: Mapping[str, str]) -> bool:
    hosts = [host.strip().lower() for host in environ.get("TARMILL_HTTP_HOSTS", "").split(",") if host.strip()]
    return not hosts or target.host in hosts or f"{target.host}:{target.port}" in hosts


def _basic(credentials: tuple[str, str] | None) -> str | None:
    if credentials is None:
        return None
    return "Basic " + base64.b64encode(":".join(credentials).encode()).decode("ascii")


def _from_netrc(host: str, environ: Mapping[str, str], default: bool) -> tuple[str, str] | None:
    path = environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        entries = netrc.netrc(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if "NETRC" not in environ:
            return None
        raise AccessError(f"the netrc file {path} cannot be read: {error.strerror}", url=path) from None
    except netrc.NetrcParseError as error:
        reason = "access too permissive" if "permissive" in str(error) else f"line {error.lineno} cannot be understood"
        raise SpecError(f"the netrc file {path}: {reason}; mend it", field="NETRC", value=path) from None
    found = entries.authenticators(host) if default else entries.hosts.get(host)
    if found is None:
        return None
    login, account, password = found
    return login or account or "", password or ""


def scrub(text: str, header: str | None) -> str:
    """Remove a credential from a text that a server sent back."""
    if header:
        kind, _, value = header.partition(" ")
        text = text.replace(value, HIDDEN)
        if kind == "Basic":
            _, _, password = base64.b64decode(value).decode().partition(":")
            text = text.replace(password, HIDDEN) if len(password) > 2 else text
    return mask(text)
