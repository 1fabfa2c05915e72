"""Shows what a policy remembers: a saved policy plays an episode, or several, and one page tells what it saw, did and kept,
and whether that mattered. See README.md, or --help."""

from expire_span_rl import cli
from expire_span_rl.cli.visualize import main

if __name__ == "__main__":
    cli.run(main)
