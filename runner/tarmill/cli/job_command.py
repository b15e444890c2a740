"""What the commands that run a job have in common: the same work as a script of its own and as a part of `tarmill`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tarmill.cli.arguments import plain_values
from tarmill.cli.output import run_command
from tarmill.spec import RunOptions
from tarmill.spec_base import Spec
from tarmill.values import replace, valueclass

if TYPE_CHECKING:
    import click

    from tarmill.jobs.listener import Listener


@valueclass
class JobCommand:
    """A command whose options are the fields of a spec and of run options."""

    script: str
    """Name of the script, such as htmapper."""
    verb: str
    """Name below `tarmill`, such as map."""
    kinds: tuple[type[Spec], ...]
    """The specs that the options are of, in the order of `--help`."""
    read: Callable[[dict[str, Any]], tuple[Any, RunOptions]]
    """Makes a spec and run options of the options' values by field name, as click gives them."""
    work: Callable[[Any, Any, str, Sequence[Listener]], None]
    """Runs a spec with run options, under a title, and tells listeners."""
    help: str
    epilog: str

    def make(self) -> click.Command:
        """Build the command as click knows it: for help, for mistakes, and as a part of `tarmill`."""
        import click

        from tarmill.cli.options import spec_options

        def command(**values: Any) -> None:
            self._run(values)

        for kind in reversed(self.kinds):
            command = spec_options(kind)(command)
        context = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        return click.command(self.verb, help=self.help, epilog=self.epilog, context_settings=context)(command)

    def main(self) -> None:
        """Entry point of the script; the interpreter ends without a last search for circular garbage.

        All memory goes with the process, so that there is nothing to find; the search costs a tenth of a short command.
        """
        try:
            if (values := plain_values(sys.argv[1:], *self.kinds)) is None:
                self.make()(prog_name=self.script)
            else:
                self._run(values)
        finally:
            gc.freeze()

    def _run(self, values: dict[str, Any]) -> None:
        run_command(lambda: self.start(*self.read(values), self.script), values["log_format"])

    def start(self, spec: Any, options: RunOptions, title: str, listeners: Sequence[Listener] = ()) -> None:
        """Do what is asked for: run the job, or print it.

        Args:
            spec: of the job.
            options: for its run.
            title: what a progress bar calls it.
            listeners: who wants to know how it goes, besides whoever looks at the terminal.
        """
        if options.print_manifest:
            from tarmill.cli.manifest import print_manifest

            print_manifest(spec, options)
            return
        if options.report == "auto":
            from tarmill.cli.manifest import report_url

            options = replace(options, report=report_url(spec))
        self.work(spec, options, title, listeners)
