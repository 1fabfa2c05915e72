"""What the command lines share: flags from dataclasses (tyro), help, one-line errors, exit codes.

Nothing here imports torch or an environment, so that --help and a typo are answered at once; and what imports tyro is
imported when it is first asked for, so that `run` answers Ctrl-C from the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expire_span_rl.cli.errors import UsageError, run
from expire_span_rl.registry import lazily

if TYPE_CHECKING:
    from expire_span_rl.checks import check_at_least, choice, json_object, quoted
    from expire_span_rl.cli.fields import field_docs, flag_names, joined
    from expire_span_rl.cli.parsing import arguments_of, arguments_without, parse, value_of, values_of
    from expire_span_rl.cli.values import check_flag, flag_of, suggestion

_LAZY = {
    **dict.fromkeys(("check_at_least", "choice", "json_object", "quoted"), "checks"),
    **dict.fromkeys(("field_docs", "flag_names", "joined"), "cli.fields"),
    **dict.fromkeys(("arguments_of", "arguments_without", "parse", "value_of", "values_of"), "cli.parsing"),
    **dict.fromkeys(("check_flag", "flag_of", "suggestion"), "cli.values"),
}
"""Names by the module of this project that has them."""

__all__ = [
    "UsageError",
    "arguments_of",
    "arguments_without",
    "check_at_least",
    "check_flag",
    "choice",
    "field_docs",
    "flag_names",
    "flag_of",
    "joined",
    "json_object",
    "parse",
    "quoted",
    "run",
    "suggestion",
    "value_of",
    "values_of",
]


__getattr__ = lazily("expire_span_rl", _LAZY)
