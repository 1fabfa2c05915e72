"""Conversion of the values of flags, and errors for invalid ones. Every function raises ValueError, one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

from expire_span_rl.checks import choice, nearest, quoted
from expire_span_rl.cli.errors import UsageError
from expire_span_rl.cli.fields import Flag

_SLIP = 0.9  # likeness from which a name counts as a typing error, before other libraries' names are tried
_NUMBER = re.compile(r"[+-]?\d+(_\d+)*(\.\d*)?(e[+-]?\d{1,9})?", re.ASCII | re.IGNORECASE)
_LARGEST_EXPONENT = 18  # 1e999999999 would fill the memory with its digits; Decimal refuses more than 18 digits of it

_STEPS = ("steps", "timesteps", "total-steps", "max-steps", "max-timesteps", "num-timesteps", "n-timesteps", "frames")
ALIASES: dict[str, tuple[str, ...]] = {
    "total-timesteps": _STEPS,
    "total-blocks": ("total-timesteps", "blocks", "updates", *_STEPS),
    "num-envs": ("n-envs", "envs", "n-env", "num-env", "num-environments", "n-environments", "vec-envs"),
    "num-steps": ("n-steps", "rollout-length", "rollout-steps", "unroll-length", "horizon", "steps-per-rollout"),
    "learning-rate": ("lr", "lrate", "alpha", "step-size"),
    "final-learning-rate": ("lr-end", "final-lr", "lr-final"),
    "batch-size": ("bs", "batch", "minibatch-size"),
    "num-minibatches": ("bs", "batch-size", "batch", "minibatches", "n-minibatches", "minibatch-size"),
    "update-epochs": ("epochs", "n-epochs", "num-epochs", "ppo-epochs"),
    "n-epochs": ("epochs", "num-epochs", "update-epochs"),
    "clip-coef": ("clip", "clip-range", "clip-eps", "clip-ratio", "clip-param"),
    "clip-range": ("clip", "clip-coef", "clip-eps", "clip-ratio", "clip-param"),
    "ent-coef": ("entropy", "entropy-coef", "entropy-bonus"),
    "vf-coef": ("value-coef", "value-loss-coef", "vf"),
    "max-grad-norm": ("grad-clip", "clip-grad", "grad-norm", "gradient-clip"),
    "gamma": ("discount", "discount-factor"),
    "gae-lambda": ("lambda", "lam", "gae"),
    "trace-lambda": ("lambda", "lam"),
    "width": ("hidden-size", "hidden", "hidden-dim", "dim", "d-model", "embed-dim", "embedding-size", "units"),
    "num-layers": ("layers", "n-layers", "depth"),
    "num-heads": ("heads", "n-heads", "n-head"),
    "max-span": ("span", "context-length", "memory-length", "mem-len"),
    "window": ("context-length", "memory-length", "mem-len", "memory-size"),
    "memory-budget": ("budget", "memory-size", "memory-limit"),
    "memory": ("model", "core", "arch", "architecture", "net"),
    "agent": ("algo", "algorithm", "method"),
    "env": ("env-id", "env-name", "environment", "task", "game"),
    "env-kwargs": ("kwargs", "env-args", "env-config"),
    "run-dir": ("out", "output", "out-dir", "outdir", "output-dir", "log-dir", "logdir", "save-dir", "save-path"),
    "out": ("output", "html", "save"),
    "resume": ("checkpoint", "load", "continue", "restore"),
    "checkpoint-every": ("save-every", "save-freq", "save-interval", "checkpoint-freq", "checkpoint-interval"),
    "overwrite": ("force",),
    "no-progress-bar": ("no-progress", "silent"),
    "torch-threads": ("threads", "num-threads", "n-threads"),
    "device": ("gpu", "cuda", "cpu"),
    "num-actors": ("workers", "actors", "num-workers", "n-workers"),
    "episodes": ("n-episodes", "num-episodes", "n-eval-episodes"),
    "no-stochastic": ("deterministic", "greedy"),
    "stochastic": ("sample", "no-deterministic"),
    "video": ("render", "film", "mp4", "record"),
    "plot": ("figure", "png", "picture"),
    "png": ("figure", "plot", "picture"),
}  # fmt: skip
"""By flag: what people who come from other libraries type for it."""


PATHS = {"file", "json", "out", "path", "plot", "png", "policies", "policy", "resume", "run_dir", "runs", "video"}
"""Fields whose text names a file or a folder. The empty text would mean the current folder, or that there is none."""


def flag_of(argument: str) -> str:
    """The flag in --some_flag=value, as it is listed."""
    return argument.split("=")[0].replace("_", "-")


def check_flag(argument: str, valid: Sequence[str]) -> None:
    """Raises UsageError for a flag that is not among `valid`, with the one that was probably meant."""
    flag = flag_of(argument)
    if flag not in valid:
        meant = suggestion(flag, valid)
        text = flag if quoted(flag) == f"'{flag}'" else quoted(flag)  # a strange one in quotation marks
        raise UsageError(f"unknown flag {text}: {f'did you mean {meant}?' if meant else 'see --help'}")


def suggestion(unknown: str, valid: Iterable[str]) -> str | None:
    """The flag that an unknown one probably stands for; None if nothing is near."""
    name, by_name = unknown.lstrip("-").lower(), {flag.lstrip("-"): flag for flag in valid}
    # All switches' names for off begin alike, which is no likeness.
    off = name.startswith("no-")
    names = {
        flag.removeprefix("no-") if off else flag: by_name[flag] for flag in by_name if flag.startswith("no-") == off
    }
    short = name.removeprefix("no-") if off else name
    if slip := nearest(short, names, cutoff=_SLIP):
        return names[slip]
    for meant, aliases in ALIASES.items():
        if name in aliases and meant in by_name:
            return by_name[meant]
    if near := nearest(short, names):
        return names[near]
    longer = [flag for flag in names if flag.startswith(short)] if len(short) > 2 else []
    return names[longer[0]] if len(longer) == 1 else None


def whole_number(flag: str, text: str) -> int:
    """The whole number that 1000000, 1_000_000, 1e6 or 2.5e5 is."""
    if _NUMBER.fullmatch(text):
        number = Decimal(text.replace("_", ""))
        if number and number.adjusted() > _LARGEST_EXPONENT:
            raise UsageError(f"{flag}: expected a whole number below 1e{_LARGEST_EXPONENT + 1}, got {quoted(text)}")
        if number == number.to_integral_value():
            return int(number)
    raise UsageError(f"{flag}: expected a whole number such as 1000 or 1e6, got {quoted(text)}")


def check_path(flag: Flag, text: str) -> None:
    """Raises UsageError for an empty name of a file or a folder, such as a shell's variable that is not set."""
    if flag.field in PATHS and not text:
        name = (flag.metavar or flag.field) if flag.is_positional else flag.name
        raise UsageError(f"{name}: expected the name of a file or a folder, got ''")


def converted(flag: Flag, text: str) -> str:
    """A flag's value, checked, spelled as tyro reads it."""
    check_path(flag, text)
    if flag.choices:
        return choice(flag.name, text, flag.choices)
    if flag.takes_none and text.lower() == "none":
        return "None"
    if flag.element is int:
        return str(whole_number(flag.name, text))
    if flag.element is float:
        try:
            return repr(float(text))
        except ValueError:
            raise UsageError(f"{flag.name}: expected a number, got {quoted(text)}") from None
    return text
