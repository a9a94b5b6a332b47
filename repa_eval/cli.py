"""`repa-eval`: opens checkpoints of the REPA family, measures them, and renders the report."""

from __future__ import annotations

import click

from repa_eval import __version__
from repa_eval.console.app import CommandFolder


@click.group(cls=CommandFolder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="repa-eval")
def main() -> None:
    """Evaluate and analyse representation-aligned diffusion models.

    \b
    Example:
      repa-eval demo
    """


if __name__ == "__main__":
    main(prog_name="repa-eval")
