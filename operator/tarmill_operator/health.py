"""Probes and metrics over HTTP: /healthz, /readyz, /metrics."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from tarmill_operator.metrics import CONTENT_TYPE, Metrics


async def serve(
    port: int, metrics: Metrics, *, ailing: Callable[[], str], unready: Callable[[], str]
) -> tuple[web.AppRunner, int]:
    """Serve probes and metrics until the runner is cleaned up.

    Args:
        port: on all addresses; 0 for any that is free, on loopback.
        metrics: what /metrics tells.
        ailing: tells why the process should be started again, "" where it should not.
        unready: tells why it is of no use yet, "" where it is.

    Returns:
        The server, and its port.
    """

    def probe(question: Callable[[], str]) -> Callable[[web.Request], object]:
        async def answer(request: web.Request) -> web.Response:
            trouble = question()
            return web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200)

        return answer

    async def tell(request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    application = web.Application()
    application.router.add_get("/healthz", probe(ailing))  # type: ignore[arg-type]
    application.router.add_get("/readyz", probe(unready))  # type: ignore[arg-type]
    application.router.add_get("/metrics", tell)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None if port else "127.0.0.1", port).start()
    return runner, int(runner.addresses[0][1])
