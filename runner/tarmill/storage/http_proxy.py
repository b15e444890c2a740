"""Which proxy a web server is reached through, by the environment; without urllib3, for those who can do without it."""

from __future__ import annotations

from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from tarmill.errors import SpecError
from tarmill.storage.http_auth import Target
from tarmill.storage.urls import mask


def proxy_for(target: Target) -> str | None:
    """Give the proxy to a target by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in either case."""
    proxies = getproxies_environment()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if not proxy or proxy_bypass_environment(f"{target.host}:{target.port}", proxies):
        return None
    if "://" not in proxy:
        proxy = "http://" + proxy
    if not proxy.lower().startswith(("http://", "https://")):
        raise SpecError(
            f"the proxy {mask(proxy)} for {mask(target.url)} is not http(s); set {target.scheme.upper()}_PROXY to one "
            "that is, or NO_PROXY",
            field="proxy",
            value=mask(proxy),
        )
    return proxy
