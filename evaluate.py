"""Evaluates saved policies on the same episodes: success, return, memory use and speed, as a table, JSON and a plot.
See README.md, or --help."""

from expire_span_rl import cli
from expire_span_rl.cli.evaluate import main

if __name__ == "__main__":
    cli.run(main)
