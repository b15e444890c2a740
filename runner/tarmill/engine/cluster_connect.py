"""From what a person writes after `-c` to a connected Dask client, or to an error that says what to do."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

from tarmill.errors import ClusterError, UsageError

CONNECT_TIMEOUT_S = 10.0

_ADDRESS = re.compile(r"(?:(?P<scheme>[a-z]+)://)?(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(?P<port>[0-9]+)")


def scheduler_address(text: str, *, tls: bool = False) -> str:
    """The address that `-c` means: HOST:PORT, tcp:// or tls:// or another scheme of Dask, or a scheduler file.

    Args:
        text: what the person wrote.
        tls: HOST:PORT means tls:// instead of tcp://.

    Raises:
        UsageError: it is neither an address nor a file that a scheduler wrote.
    """
    match = _ADDRESS.fullmatch(text)
    if match:
        return text if match["scheme"] else f"{'tls' if tls else 'tcp'}://{text}"
    try:
        content = json.loads(Path(text).read_text("utf-8"))
        return str(content["address"])
    except FileNotFoundError:
        found = "no such file exists"
    except OSError as error:
        found = f"reading it as a file failed: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        found = "it is a file, but not one that `dask scheduler --scheduler-file` writes: no address in it"
    raise UsageError(
        f"-c {text}: expected HOST:PORT, tcp://HOST:PORT, tls://HOST:PORT or a scheduler file; {found}", scheduler=text
    )


def connect(
    scheduler: str,
    *,
    tls_ca_file: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> Any:
    """A connected `distributed.Client` that is not the process's default client.

    Without TLS arguments Dask's own configuration counts (`DASK_DISTRIBUTED__COMM__TLS__*`).

    Raises:
        UsageError: distributed is not installed, the notation is wrong, or a TLS file cannot be read.
        ClusterError: no scheduler answers there in time.
    """
    try:
        import distributed
    except ImportError as error:
        raise UsageError(f"-c needs Dask, which cannot be imported ({error}): pip install 'tarmill[dask]'") from error
    address = scheduler_address(scheduler, tls=tls_ca_file is not None)
    tls_files(tls_ca_file, tls_cert, tls_key)
    security = None
    if tls_ca_file or tls_cert or tls_key:
        security = distributed.Security(
            tls_ca_file=tls_ca_file, tls_client_cert=tls_cert, tls_client_key=tls_key, require_encryption=True
        )
    try:
        with warnings.catch_warnings():
            # Dask warns of any differing package; `DaskEngine.check_versions` judges the ones that matter.
            warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
            return distributed.Client(
                address, timeout=timeout_s, set_as_default=False, security=security, name="tarmill"
            )
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise ClusterError(
            f"no Dask scheduler answered at {address} within {timeout_s:g} s ({cause}). "
            "Expected `dask scheduler` there: check host and port, whether it runs, and whether it wants TLS "
            "(tls://, --tls-ca-file, ...)",
            address=address,
        ) from error


def tls_files(tls_ca_file: str | None, tls_cert: str | None, tls_key: str | None) -> None:
    """Make sure that the PEM files that are named are there.

    Raises:
        UsageError: names the one that is not.
    """
    for name, file in (("CA file", tls_ca_file), ("certificate", tls_cert), ("key", tls_key)):
        if file is not None and not Path(file).is_file():
            raise UsageError(f"TLS {name} {file}: no such file", path=file)
