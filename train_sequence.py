"""Trains a policy's memory on sequences: config -> streams, policy -> learn. See docs/sequence.md, or --help."""

from expire_span_rl.cli import run


def main() -> None:
    """Imported under `run`, which answers Ctrl-C from the start: it takes a second or two."""
    from expire_span_rl.cli.train_sequence import main

    main()


if __name__ == "__main__":
    run(main)
