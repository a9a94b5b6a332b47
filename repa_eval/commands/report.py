"""`repa-eval report`: one self-contained HTML file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from repa_eval.console.app import Command, example
from repa_eval.runtime.files import write_atomic


@click.command(cls=Command, short_help="Render runs as one HTML page")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="report.html",
    show_default=True,
    help="HTML file to write",
)
@click.option(
    "--baseline",
    metavar="RUN",
    help="name or folder of the run to compare with  [default: the run of the method vanilla]",
)
@click.option("--title", help="title of the page")
@click.option("--json", "as_json", is_flag=True, help="print only JSON on stdout")
@example("repa-eval report demo/vanilla demo/repa --out report.html")
def command(runs: tuple[Path, ...], out: Path, baseline: str | None, title: str | None, as_json: bool) -> None:
    """Render the results of one or more run folders as one HTML file that opens offline."""
    write_report(runs, out, title, baseline)
    click.echo(json.dumps({"report": str(out)}) if as_json else str(out))


def write_report(
    runs: tuple[Path, ...], out: Path, title: str | None = None, baseline: str | Path | None = None
) -> None:
    """Render run folders to a file; nothing is written if that fails. title, baseline: see `collect` and `render`."""
    from repa_eval.commands.shared.metric_words import metric_words
    from repa_eval.reports.html import collect, render

    arguments = collect(runs, baseline=baseline).arguments() | {"metrics": metric_words()}
    if title is not None:
        arguments["title"] = title
    write_atomic(out, render(**arguments))
