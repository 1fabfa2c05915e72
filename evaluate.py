"""Evaluates saved policies on the same episodes: success, return, memory use and speed, as a table, JSON and a plot.
See README.md, or --help."""

from expire_span_rl.cli import run


def main() -> None:
    """Imported under `run`, which answers Ctrl-C from the start: it takes a second or two."""
    from expire_span_rl.cli.evaluate import main

    main()


if __name__ == "__main__":
    run(main)
