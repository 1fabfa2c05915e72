"""What the command lines share: flags from dataclasses (tyro), help, one-line errors, exit codes.

Nothing here imports torch or an environment, so that --help and a typo are answered at once.
"""

from expire_span_rl.checks import SEED_BITS, check_at_least, check_seed, choice, json_object, quoted
from expire_span_rl.cli.errors import UsageError, one_line, run
from expire_span_rl.cli.fields import field_docs, flag_names, joined, part
from expire_span_rl.cli.interrupts import interruptible
from expire_span_rl.cli.parsing import check_flags, parse, value_of
from expire_span_rl.cli.values import check_flag, device, environment_of, flag_of, suggestion, whole_number

__all__ = [
    "SEED_BITS", "UsageError", "check_at_least", "check_flag", "check_flags", "check_seed", "choice", "device",
    "environment_of", "field_docs", "flag_names", "flag_of", "interruptible", "joined", "json_object", "one_line", "parse",
    "part", "quoted", "run", "suggestion", "value_of", "whole_number",
]  # fmt: skip
