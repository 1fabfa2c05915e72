"""The console commands of the installed package: `expire-span-train`, `expire-span-train-sequence`,
`expire-span-evaluate`, `expire-span-visualize`."""

from __future__ import annotations

from expire_span_rl import cli


def train() -> None:
    """`train_rl.py` as a command. Never returns."""
    from expire_span_rl.cli.train import main  # each command imports its own program only

    cli.run(main)


def train_sequence() -> None:
    """`train_sequence.py` as a command. Never returns."""
    from expire_span_rl.cli.train_sequence import main

    cli.run(main)


def evaluate() -> None:
    """`evaluate.py` as a command. Never returns."""
    from expire_span_rl.cli.evaluate import main

    cli.run(main)


def visualize() -> None:
    """`visualize.py` as a command. Never returns."""
    from expire_span_rl.cli.visualize import main

    cli.run(main)
