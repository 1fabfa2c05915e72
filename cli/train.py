"""The command line of train_rl.py. See README.md, or --help."""

from __future__ import annotations

import sys

from expire_span_rl import cli
from expire_span_rl.cli.notices import plain_warnings
from expire_span_rl.cli.settings import parse_config, resumed_config


def main() -> None:
    arguments = sys.argv[1:]
    resume = cli.value_of("resume", arguments)
    if not resume or resume.startswith("-"):  # a flag or nothing in its place is refused
        settings = parse_config(arguments)
        from expire_span_rl.environments import named_environment  # Gymnasium takes a while, and --help needs none

        named_environment(
            settings.run.env, settings.run.imports
        )  # a misspelled id is answered before torch is imported
    else:
        settings = resumed_config(resume, arguments)
    from expire_span_rl.training import train  # torch takes a second, which a misspelled flag need not wait for

    with plain_warnings():
        train(settings)
