"""What a URL says without asking anyone: its scheme, its folder, and how to print it without its secrets (pure)."""

from __future__ import annotations

import re

from tarmill.errors import SpecError

# Patterns are kept as text: `re` compiles each when it is first used, and remembers it.
_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*)://"
_USERINFO = r"([A-Za-z][A-Za-z0-9+.-]*://)([^/?#\s]*)@"
# A password with a raw slash: what follows the colon is no port, so the URL is wrong, and must still not be printed.
_BAD_USERINFO = r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#\s:@\[]*):(?!\d*(?:[/?#\s]|$))[^\s]*@"
_SECRET_QUERY = (
    r"(?i:([?&;][^=&;#\s]*(?:sig|token|secret|passw|credential|api[-_]?key|access[-_]?key|auth)[^=&;#\s]*=)[^&;#\s]*)"
)
HIDDEN = "***"


def scheme_of(url: str) -> str:
    """Name the scheme of a URL in lower case: "file" for plain paths, "-" for standard input and output.

    `pipe:` needs no slashes to be recognised, as in WebDataset's notation.
    """
    if url == "-":
        return "-"
    if "://" in url and (match := re.match(_SCHEME, url)):
        return match[1].lower()
    return "pipe" if url.startswith("pipe:") else "file"


def mask(text: str) -> str:
    """Hide passwords of URLs and signed query values anywhere in a text, for logs, reports and errors.

    The user's name stays (`http://me:***@host/`), since it helps to see which account was refused; a userinfo without
    a password may be a token and is hidden whole.
    """

    if "@" not in text and "=" not in text:
        return text

    def hide(match: re.Match[str]) -> str:
        user, colon, _ = match[2].partition(":")
        return f"{match[1]}{user}:{HIDDEN}@" if colon else f"{match[1]}{HIDDEN}@"

    shown = re.sub(_BAD_USERINFO, rf"\1:{HIDDEN}@", re.sub(_USERINFO, hide, text))
    return re.sub(_SECRET_QUERY, rf"\1{HIDDEN}", shown)


def local_path(url: str) -> str:
    """Turn a plain path or a `file://` URL into a path.

    Raises:
        SpecError: the URL names another host, or nothing.
    """
    if not url.lower().startswith("file://"):
        path = url
    else:
        host, slash, rest = url[len("file://") :].partition("/")
        if host not in ("", "localhost"):
            raise SpecError(
                f"{url!r} names the host {host!r}; file URLs reach this machine only: "
                f"write file:///{host}{slash}{rest} for an absolute path, or the plain path",
                field="url",
                value=url,
            )
        from urllib.parse import unquote

        path = slash + unquote(rest, errors="surrogateescape")
    if not path or "\0" in path:
        raise SpecError(f"{url!r} is no path: expected a file name", field="url", value=url)
    return path


def join_url(folder: str, name: str) -> str:
    """Put a name (may hold slashes) below a folder URL; quoted where the scheme needs it, the query kept in place."""
    if scheme_of(folder) not in ("http", "https", "file") or (scheme_of(folder) == "file" and "://" not in folder):
        return f"{folder}{name}" if folder.endswith("/") or not folder else f"{folder}/{name}"
    from urllib.parse import quote

    path, mark, query = folder.partition("?")
    return f"{path.rstrip('/')}/{quote(name, errors='surrogateescape')}{mark}{query}"
