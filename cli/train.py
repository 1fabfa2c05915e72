"""The command line of train_rl.py. See README.md, or --help."""

from __future__ import annotations

import sys
from pathlib import Path

from expire_span_rl import cli
from expire_span_rl.cli.notices import plain_warnings
from expire_span_rl.cli.settings import parse_config, saved_config


def main() -> None:
    arguments = sys.argv[1:]
    resume = cli.value_of("resume", arguments)
    if resume is None:
        config = parse_config(arguments)
        from expire_span_rl.environments import named_environment  # Gymnasium takes a while, and --help needs none

        named_environment(config["env"], config["imports"])  # a misspelled id is answered before torch is imported
    else:
        extra = [a for a in arguments if a.startswith("--") and not a.startswith(("--resume", "--no-progress-bar"))]
        if extra:
            raise cli.UsageError(
                f"--resume: expected no other flags, since the run's own config is used, got {extra[0]}"
            )
        config = saved_config(Path(resume))
        from expire_span_rl.envs import import_modules  # Gymnasium takes a while, and --help needs none

        import_modules(config.get("imports", ()))  # the user's own, from the run's start
        config = {**config, "resume": resume, "run_dir": resume, "progress_bar": "--no-progress-bar" not in arguments}
    from expire_span_rl.training import train  # torch takes a second, which a misspelled flag need not wait for

    with plain_warnings():
        train(config)
