"""Trains an agent: config -> environments, policy, agent -> learn. See README.md, or --help."""

from expire_span_rl.cli import run


def main() -> None:
    """Imported under `run`, which answers Ctrl-C from the start: it takes a second or two."""
    from expire_span_rl.cli.train import main

    main()


if __name__ == "__main__":
    run(main)
