"""Where the API server is, and what proves who we are: a pod's service account, or a kubeconfig."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field

import kopf

from tarmill.errors import UsageError

_RELOAD_S = 60.0


@dataclass
class Connection:
    """Gives address, TLS and headers for requests; a service account's token is read again, since it runs out.

    Raises:
        UsageError: there is neither a service account nor a kubeconfig.
    """

    _info: kopf.ConnectionInfo = field(init=False)
    _loaded: float = field(init=False, default=0.0)
    _tls: ssl.SSLContext | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.reload()

    @property
    def server(self) -> str:
        """Base URL of the API server."""
        return self._info.server.rstrip("/")

    @property
    def namespace(self) -> str:
        """Namespace that we run in, "" where that cannot be told."""
        return self._info.default_namespace or ""

    def tls(self) -> ssl.SSLContext:
        """Give the context that verifies the server and shows our certificate, if we have one."""
        if self._tls is None:
            self._tls = self._info.as_ssl_context()
        return self._tls

    def headers(self) -> dict[str, str]:
        """Give the headers that say who we are."""
        if time.monotonic() - self._loaded > _RELOAD_S:
            self.reload()
        return self._info.as_http_headers()

    def reload(self) -> None:
        """Read token or kubeconfig again."""
        self._info = log_in()
        self._loaded = time.monotonic()


def log_in(**_: object) -> kopf.ConnectionInfo:
    """Read where the API server is and who we are, for ourselves and for kopf.

    Raises:
        UsageError: there is neither a service account nor a kubeconfig.
    """
    settings = kopf.OperatorSettings()
    info = kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
    if info is None:
        raise UsageError(
            "no Kubernetes API server to talk to: found neither a pod's service account nor a kubeconfig; set "
            "KUBECONFIG, or run the operator in a cluster"
        )
    return info
