"""Trains an agent: config -> environments, policy, agent -> learn. See README.md, or --help."""

from expire_span_rl import cli
from expire_span_rl.cli.train import main

if __name__ == "__main__":
    cli.run(main)
