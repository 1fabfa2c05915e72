"""What the command lines share: flags from dataclasses (tyro), help, one-line errors, exit codes.

Nothing here imports torch or an environment, so that --help and a typo are answered at once.
"""

from expire_span_rl.checks import check_at_least, choice, json_object, quoted
from expire_span_rl.cli.errors import UsageError, run
from expire_span_rl.cli.fields import field_docs, flag_names, joined
from expire_span_rl.cli.parsing import parse, value_of, values_of
from expire_span_rl.cli.values import check_flag, flag_of, suggestion

__all__ = [
    "UsageError",
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
