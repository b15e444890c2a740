"""Options of `tarmill run` for a job in a cluster."""

from __future__ import annotations

from tarmill.errors import UsageError
from tarmill.spec import RunOptions
from tarmill.spec_base import Spec, option
from tarmill.values import fields, valueclass


@valueclass(kw_only=True)
class ServeOptions(Spec):
    """Where a job in a cluster is to be reached, and where it leaves its last words."""

    serve: bool = option(
        False, help="Cluster mode, as in a Kubernetes pod: tell how the job goes by the following, and how it ended."
    )
    dask_port: int = option(
        0,
        metavar="PORT",
        help="Start a Dask scheduler at this port, and run on the workers that come; with --tls-ca, ...",
    )
    status_port: int = option(
        0, metavar="PORT", help="Serve /progress (JSON), /metrics (Prometheus) and /healthz by HTTP at this port."
    )
    host: str = option("0.0.0.0", metavar="ADDRESS", help="Address to listen at.")
    termination_log: str = option(
        "/dev/termination-log",
        metavar="FILE",
        help="Write here how the job ended: JSON of at most 4096 bytes. The default is written only where it exists.",
    )
    insecure: bool = option(False, help="Let --dask-port do without TLS: whoever reaches that port runs code here.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dask_port", "status_port"):
            if not 0 <= getattr(self, name) < 1 << 16:
                self.refuse(name, "expected a port number below 65536")
        if self.dask_port and self.dask_port == self.status_port:
            self.refuse("status_port", "--dask-port has that port already")
        if not self.serve:
            for field in fields(self):
                if getattr(self, field.name) != field.default:
                    self.refuse(field.name, "it needs --serve")

    def check_tls(self, options: RunOptions) -> None:
        """Make sure that a scheduler is not open to everybody.

        Raises:
            UsageError: a TLS file is missing, or another scheduler was named too.
        """
        if options.scheduler:
            raise UsageError("--dask-port starts a scheduler, and -c names another; give one of them")
        files = {"--tls-ca": options.tls_ca, "--tls-cert": options.tls_cert, "--tls-key": options.tls_key}
        missing = [flag for flag, file in files.items() if not file]
        if missing and not (self.insecure and len(missing) == len(files)):
            raise UsageError(
                f"--dask-port lets whoever reaches it run code here, so that it needs TLS: give {', '.join(missing)} "
                "too, or --insecure in a network that nobody else can enter"
            )
