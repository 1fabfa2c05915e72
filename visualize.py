"""Shows what a policy remembers: a saved policy plays an episode, or several, and one page tells what it saw, did and
kept, and whether that mattered. See README.md, or --help."""

from expire_span_rl.cli import run


def main() -> None:
    """Imported under `run`, which answers Ctrl-C from the start: it takes a second or two."""
    from expire_span_rl.cli.visualize import main

    main()


if __name__ == "__main__":
    run(main)
