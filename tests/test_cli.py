"""The command lines: help, completion, version, and one clear line for each thing that can be wrong."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import gymnasium as gym
import pytest
import tyro
from script_cases import ROOT

from benchmarks import comparison, coverage, environments, learning, prediction, scaling, training
from expire_span_rl import __version__, cli
from expire_span_rl.agents import AGENTS
from expire_span_rl.agents.rollout import RolloutsEnded
from expire_span_rl.cli import evaluate, visualize
from expire_span_rl.cli.fields import Flag, flags_of
from expire_span_rl.cli.help import GROUPS, WIDTH, grouped, help_text
from expire_span_rl.cli.parsing import check_arguments
from expire_span_rl.cli.settings import parse_config
from expire_span_rl.cli.values import ALIASES
from expire_span_rl.envs.errors import EnvironmentFailed
from expire_span_rl.policies import KINDS
from expire_span_rl.sequences import SequenceConfig
from expire_span_rl.settings import RunConfig, run_parts

SCRIPTS = ("train_rl.py", "train_sequence.py", "evaluate.py", "visualize.py")
SLOW = {"torch", "stable_baselines3", "minigrid", "gymnasium", "matplotlib"}
CONFIGS = {
    "evaluate": evaluate.EvaluateConfig,
    "visualize": visualize.VisualizeConfig,
    **{f"train {kind} {agent}": cli.joined(*run_parts(kind, agent)) for kind in KINDS for agent in ("ppo", "impala")},
    **{f"train {agent}": cli.joined(*run_parts(RunConfig.memory, agent)) for agent in AGENTS},
    "comparison": comparison.ComparisonConfig,
    "coverage": coverage.CoverageConfig,
    "environments": environments.Config,
    "learning": learning.BenchmarkConfig,
    "prediction": prediction.ProbeConfig,
    "scaling": scaling.ScalingConfig,
    "sequence": SequenceConfig,
    "training": training.BenchmarkConfig,
}
WHOLE = [(name, flag) for name, config in CONFIGS.items() for flag in flags_of(config) if flag.element is int]


@dataclass(frozen=True)
class Settings:
    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Policy file. Or a folder."""
    total_timesteps: int = 3_000_000
    """Steps."""
    learning_rate: float = 1e-3
    """Adam's learning rate."""
    ent_coef: float | None = None
    """None: 0.01."""
    memory: Literal["expire_span", "gru", "none"] = "expire_span"
    """Memory kind."""
    wrap: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Wraps."""
    budgets: tuple[int, ...] = (16, 32)
    """Budgets."""
    run_dir: str = ""
    """Folder. Default: runs/."""
    imports: Annotated[str, tyro.conf.arg(name="import")] = ""
    """A module."""
    progress_bar: bool = True
    """Show progress."""
    overwrite: bool = False
    """Replace."""
    layers: list[int] = dataclasses.field(default_factory=lambda: [1, 2])
    """Layers."""

    def __post_init__(self):
        cli.check_at_least(self, total_timesteps=1)


def settings(*arguments: str, path: str = "p") -> Settings:
    """The settings that a command line gives."""
    return cli.parse(Settings, [path, *arguments], "Shows.")


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ([], "total_timesteps", 3_000_000),
        (["--total-timesteps", "1e6"], "total_timesteps", 1_000_000),
        (["--total-timesteps", "1_000_000"], "total_timesteps", 1_000_000),
        (["--total-timesteps=2.5e5"], "total_timesteps", 250_000),
        (["--total-timesteps", "2E3"], "total_timesteps", 2000),
        (["--total-timesteps", "10.0"], "total_timesteps", 10),
        (["--total_timesteps", "7"], "total_timesteps", 7),
        (["--total-timesteps", "7", "--total-timesteps", "8"], "total_timesteps", 8),
        (["--total-timesteps", "123456789012345678"], "total_timesteps", 123456789012345678),
        (["--learning-rate", "3e-4"], "learning_rate", 0.0003),
        (["--learning-rate", "-1e-3"], "learning_rate", -0.001),
        (["--learning-rate=-1e-3"], "learning_rate", -0.001),
        (["--ent-coef", "None"], "ent_coef", None),
        (["--ent-coef", "none"], "ent_coef", None),
        (["--ent-coef", "0.5"], "ent_coef", 0.5),
        (["--memory", "gru"], "memory", "gru"),
        (["--memory", "none"], "memory", "none"),
        (["--wrap", "stretch=2", "--wrap", "episodes=3"], "wrap", ("stretch=2", "episodes=3")),
        (["--budgets", "1e2", "8", "--overwrite"], "budgets", (100, 8)),
        (["--layers", "3", "4"], "layers", [3, 4]),
        ([], "layers", [1, 2]),
        (["--import", ""], "imports", ""),
        (["--import="], "imports", ""),
        (["--run-dir", "with space"], "run_dir", "with space"),
        (["--run-dir=--odd"], "run_dir", "--odd"),
        (["--run-dir", "-"], "run_dir", "-"),
        (["--import", "popgym"], "imports", "popgym"),
        (["--no-progress-bar"], "progress_bar", False),
        (["--overwrite"], "overwrite", True),
    ],
)
def test_values(arguments, field, value):
    assert getattr(settings(*arguments), field) == value


def test_an_argument_may_stand_between_flags():
    config = cli.parse(Settings, ["--overwrite", "file", "--total-timesteps", "2"], "")
    assert (config.path, config.overwrite, config.total_timesteps) == ("file", True, 2)


WHOLE_WANTED = "--total-timesteps: expected a whole number such as 1000 or 1e6, got"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--total-timesteps", "1.5"], f"{WHOLE_WANTED} '1.5'"),
        (["--run-dir", ""], "--run-dir: expected the name of a file or a folder, got ''"),
        (["--run-dir="], "--run-dir: expected the name of a file or a folder, got ''"),
        (["--total-timesteps", "1e-1"], f"{WHOLE_WANTED} '1e-1'"),
        (["--total-timesteps", "many"], f"{WHOLE_WANTED} 'many'"),
        (["--total-timesteps", "1__0"], f"{WHOLE_WANTED} '1__0'"),
        (["--total-timesteps", "inf"], f"{WHOLE_WANTED} 'inf'"),
        (["--total-timesteps", "\u0663"], f"{WHOLE_WANTED} '\u0663'"),
        (["--total-timesteps", ""], f"{WHOLE_WANTED} ''"),
        (["--total-timesteps", "1\x1b[31m"], f"{WHOLE_WANTED} '1\\x1b[31m'"),
        (["--total-timesteps", "x" * 300], f"{WHOLE_WANTED} '{'x' * 200}'..."),
        (
            ["--total-timesteps", "1e999999999"],
            "--total-timesteps: expected a whole number below 1e19, got '1e999999999'",
        ),
        (["--total-timesteps", "1e99999999999999999999"], f"{WHOLE_WANTED} '1e99999999999999999999'"),
        (["--total-timesteps", "0e99"], "--total-timesteps: expected at least 1, got 0"),
        (["--total-timesteps"], "--total-timesteps: expected a whole number after it, got nothing"),
        (
            ["--total-timesteps", "--overwrite"],
            "--total-timesteps: expected a whole number after it, got '--overwrite'",
        ),
        (["--total-timesteps", "0"], "--total-timesteps: expected at least 1, got 0"),
        (["--budgets", "8", "1.5"], "--budgets: expected a whole number such as 1000 or 1e6, got '1.5'"),
        (["--learning-rate", "fast"], "--learning-rate: expected a number, got 'fast'"),
        (["--learning-rate", "None"], "--learning-rate: expected a number, got 'None'"),
        (
            ["--memory", "expire"],
            "--memory: expected one of expire_span, gru, none, got 'expire'; did you mean 'expire_span'?",
        ),
        (["--memory", "lstm"], "--memory: expected one of expire_span, gru, none, got 'lstm'"),
        (["--overwrite=yes"], "--overwrite: expected --overwrite or --no-overwrite without a value, got 'yes'"),
        (["second"], "arguments: expected 1 without a flag, got 'second' too; see --help"),
        (["--import"], "--import: expected a value after it, got nothing"),
        (["--print-completion", "tcsh"], "--print-completion: expected one of bash, zsh, fish, got 'tcsh'"),
        (["--print-completion"], "--print-completion: expected one of bash, zsh, fish, got ''"),
        (["--leraning-rate", "1"], "unknown flag --leraning-rate: did you mean --learning-rate?"),
        (["--learning"], "unknown flag --learning: did you mean --learning-rate?"),
        (["--lr", "1"], "unknown flag --lr: did you mean --learning-rate?"),
        (["-lr", "1"], "unknown flag -lr: did you mean --learning-rate?"),
        (["--LR=1"], "unknown flag --LR: did you mean --learning-rate?"),
        (["--steps", "1"], "unknown flag --steps: did you mean --total-timesteps?"),
        (["--no-progres-bar"], "unknown flag --no-progres-bar: did you mean --no-progress-bar?"),
        (["--silent"], "unknown flag --silent: did you mean --no-progress-bar?"),
        (["--no-learning-rate"], "unknown flag --no-learning-rate: see --help"),
        (["--window", "4"], "unknown flag --window: see --help"),
        (["--fnord"], "unknown flag --fnord: see --help"),
        (["--x" + "y" * 300], f"unknown flag '--x{'y' * 197}'...: see --help"),
        (["--\x1b[0m"], "unknown flag '--\\x1b[0m': see --help"),
    ],
)
def test_bad_usage(arguments, message):
    with pytest.raises(ValueError) as error:
        settings(*arguments)
    assert str(error.value) == message


def test_a_missing_argument():
    with pytest.raises(cli.UsageError, match=r"^PATH: expected a policy file, got none; see --help$"):
        cli.parse(Settings, ["--overwrite"], "")


def test_a_type_that_only_tyro_knows():
    """A memory kind of somebody else may have settings of any type."""

    @dataclass(frozen=True)
    class Other:
        pair: tuple[int, str] = (1, "a")

    assert cli.parse(Other, ["--pair", "2", "b"], "").pair == (2, "b")
    with pytest.raises(cli.UsageError, match="pair") as error:
        cli.parse(Other, ["--pair", "2"], "")
    assert "\n" not in str(error.value) and "─" not in str(error.value)


@pytest.mark.parametrize(("name", "flag"), WHOLE, ids=[f"{name} {flag.field}" for name, flag in WHOLE])
def test_every_whole_number_takes_an_exponent(name, flag):
    flags = [one for one in flags_of(CONFIGS[name]) if not one.is_positional]
    assert check_arguments(flags, [flag.name, "2.5e2"]) == [flag.name, "250"]
    with pytest.raises(
        cli.UsageError, match=rf"^{flag.name}: expected a whole number such as 1000 or 1e6, got '1\.5'$"
    ):
        check_arguments(flags, [flag.name, "1.5"])


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ("--lr", "--learning-rate"),
        ("--n-envs", "--num-envs"),
        ("--timesteps", "--total-timesteps"),
        ("--steps", "--total-timesteps"),
        ("--n-steps", "--num-steps"),
        ("--bs", "--num-minibatches"),
        ("--batch-size", "--num-minibatches"),
        ("--entropy-coef", "--ent-coef"),
        ("--discount", "--gamma"),
        ("--hidden-size", "--width"),
        ("--algo", "--agent"),
        ("--env-id", "--env"),
        ("--logdir", "--run-dir"),
        ("--checkpoint", "--resume"),
        ("--gpu", "--device"),
        ("--silent", "--no-progress-bar"),
        ("--num-env", "--num-envs"),
        ("--max-spam", "--max-span"),
        ("--normalise-observations", "--normalize-observations"),
        ("--total-time-steps", "--total-timesteps"),
        ("--checkpoint-evry", "--checkpoint-every"),
        ("--hepl", "--help"),
        ("--verbose", None),
        ("--foo", None),
        ("--window", None),
        ("--no-wandb", None),
        ("--x", None),
    ],
)
def test_suggestions_of_train_rl(given, flag):
    names = cli.flag_names(CONFIGS["train expire_span ppo"])
    assert cli.suggestion(given, names) == flag


def test_batch_size_is_suggested_where_there_is_one():
    assert cli.suggestion("--bs", cli.flag_names(CONFIGS["train sb3-ppo"])) == "--batch-size"


def test_a_slip_comes_before_another_library_s_name():
    """In a sweep, --memory-budget is a flag too."""
    assert cli.suggestion("--budget", ["--memory-budget", "--budgets"]) == "--budgets"
    assert cli.suggestion("--budget", ["--memory-budget"]) == "--memory-budget"


def test_every_alias_leads_to_a_flag_of_some_script():
    names = {name for config in CONFIGS.values() for name in cli.flag_names(config)}
    assert {f"--{meant}" for meant in ALIASES} <= names


def test_help_of_settings():
    flags = flags_of(Settings)
    text = help_text("python show.py", flags, "Shows what it is.\n\nIn two paragraphs.", ("runs/a --overwrite",))
    assert text.startswith(
        "usage: python show.py PATH [flags]\n\nShows what it is.\n\nIn two paragraphs.\n\n"
        "examples:\n  python show.py runs/a --overwrite\n\n"
        "arguments:\n  PATH\n      Policy file. Or a folder.\n\nrun:\n"
    )
    for entry in (
        "  --memory NAME\n      Memory kind. (one of expire_span, gru, none; default: expire_span)\n",
        "  --total-timesteps N\n      Steps. (default: 3_000_000)\n",
        "  --learning-rate X\n      Adam's learning rate. (default: 0.001)\n",
        "  --ent-coef X\n      None: 0.01. (default: None)\n",
        "  --wrap WRAP\n      Wraps. (may be given several times; default: none)\n",
        "  --budgets N [N ...]\n      Budgets. (default: 16 32)\n",
        "  --run-dir FOLDER\n      Folder. Default: runs/.\n",
        "  --import MODULE\n      A module. (default: none)\n",
        "  --progress-bar, --no-progress-bar\n      Show progress. (default: on)\n",
        "  --overwrite, --no-overwrite\n      Replace. (default: off)\n",
    ):
        assert entry in text


def test_commands_in_a_description_stay_commands():
    text = help_text(
        "show", [], "Shows.\n\n    show --all  # everything\n    show \\\n        --some\n\nAnd more\nof it."
    )
    assert "\n\nShows.\n\n  show --all # everything\n  show --some\n\nAnd more of it.\n\n" in text


def test_a_module_is_started_as_one():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.learning", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: python -m benchmarks.learning [flags]\n")


def test_an_example_that_is_too_long_can_still_be_copied():
    text = help_text("python show.py", [], "", ("--run-dir " + " ".join(["abcdefgh"] * 12),))
    example = text[text.index("examples:\n") + 10 : text.index("\n\nhelp:")]
    assert example.count(" \\\n") == 1
    assert example.replace(" \\\n", " ").split() == f"python show.py --run-dir {' '.join(['abcdefgh'] * 12)}".split()


@pytest.mark.parametrize("name", CONFIGS)
def test_help_is_whole_and_narrow(name):
    flags = flags_of(CONFIGS[name])
    text = help_text("python train_rl.py", flags, "Words. " * 30)
    assert max(map(len, text.splitlines())) <= WIDTH
    for flag in flags:
        assert flag.help, f"{flag.field} has no docstring"
        if not flag.is_positional:
            entry = re.search(rf"^  {flag.name}\b(?!-).*\n(      .*\n)+", text, re.MULTILINE)
            assert entry is not None and re.search("default: |default:$|required", entry[0], re.IGNORECASE), flag.field
            assert all(choice in entry[0] for choice in flag.choices)


def test_quotes_of_an_example_are_not_broken():
    quoted = "'" + '{"a": 1, ' * 5 + '"b": 2}' + "'"
    assert f"    {quoted}\n" in help_text("python show.py", [], "", (f"--episodes 1000 --env-kwargs {quoted}",))


def test_groups_of_train_rl(monkeypatch, capsys):
    """Those that people use first come first; every flag of the agent and the memory kind is under its own title."""
    monkeypatch.setattr(sys, "argv", ["train_rl.py"])
    with pytest.raises(SystemExit) as stop:
        parse_config(["--help"])
    lines = capsys.readouterr().out.splitlines()
    titles = [line[:-1] for line in lines if re.fullmatch(r"[a-z ]+:", line)]
    assert stop.value.code == 0 and titles == ["examples", *GROUPS, "help"]
    under: dict[str, str] = {}
    for line in lines:
        if re.fullmatch(r"[a-z ]+:", line):
            title = line[:-1]
        elif match := re.match(r"  (--[a-z0-9-]+)", line):
            under[match[1]] = title
    assert list(under)[:5] == ["--env", "--memory", "--agent", "--preset", "--total-timesteps"]
    placed = {
        "--num-envs": "run", "--env-kwargs": "environment", "--max-span": "memory", "--ramp": "memory",
        "--memory-budget": "forgetting", "--learning-rate": "learning", "--target-kl": "learning", "--width": "network",
        "--gating": "network", "--device": "output and machine", "--checkpoint-every": "output and machine",
    }  # fmt: skip
    assert placed.items() <= under.items()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("train ")] + ["evaluate", "visualize"])
def test_each_flag_is_in_one_group(name):
    flags = flags_of(CONFIGS[name])
    listed = [flag.field for members in grouped(flags).values() for flag in members]
    assert sorted(listed) == sorted(flag.field for flag in flags)


def test_a_group_without_a_title_comes_last():
    flags = [
        Flag("mine", int, (), 1, "Mine."),
        Flag("yours", int, (), 1, "Yours.", "own"),
        Flag("env", str, (), "", "Id."),
    ]
    assert {title: [flag.field for flag in members] for title, members in grouped(flags).items()} == {
        "run": ["env"], "more": ["mine"], "own": ["yours"],
    }  # fmt: skip


def test_joined_settings():
    @dataclass(frozen=True)
    class First:
        width: int = 1
        """Width."""

    @dataclass(frozen=True)
    class Second(First):
        kind: str = "a"
        """Kind."""
        depth: int = 2
        """Depth."""

    flags = cli.joined(
        First, Second, defaults={"depth": 5, "absent": 1}, groups={Second: "own"}, choices={"kind": ["a", "b"]}
    )
    by_name = {flag.field: flag for flag in flags_of(flags)}
    assert cli.parse(flags, [], "") == flags(width=1, kind="a", depth=5)
    assert (by_name["depth"].default, by_name["depth"].group, by_name["kind"].choices) == (5, "own", ("a", "b"))
    assert by_name["width"].help == "Width."
    with pytest.raises(ValueError, match=r"^--kind: expected one of a, b, got 'c'$"):
        cli.parse(flags, ["--kind", "c"], "")


def test_settings_without_source_have_no_help():
    """As those of a memory kind that was typed into a notebook."""
    typed = dataclasses.make_dataclass("Typed", [("gain", float, 1.0)])
    assert cli.field_docs(typed) == {}
    assert cli.parse(cli.joined(typed), ["--gain", "2"], "").gain == 2


def imported(script: str, *arguments: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    """A script's command line in a process of its own, and the top-level packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    modules = re.findall(r"^import time:.*\|\s*(\S+)$", done.stderr, re.MULTILINE)
    assert "tyro" in modules
    return done, {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_answered_without_torch(script):
    done, packages = imported(script, "--help")
    assert done.returncode == 0 and packages.isdisjoint(SLOW)
    assert done.stdout.startswith(f"usage: python {script} ") and max(map(len, done.stdout.splitlines())) <= WIDTH
    assert len(re.findall(rf"^  python {script} ", done.stdout, re.MULTILINE)) == 3  # examples


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train_rl.py", ["--leraning-rate", "1"], "unknown flag --leraning-rate: did you mean --learning-rate?"),
        ("train_rl.py", ["--memory", "expire"], "did you mean 'expire_span'?"),
        ("train_rl.py", ["--num-envs", "1.5"], "--num-envs: expected a whole number such as 1000 or 1e6, got '1.5'"),
        ("evaluate.py", ["--episode", "1"], "unknown flag --episode: did you mean --episodes?"),
        ("evaluate.py", [], "policies: expected at least one policy file or run directory, got none"),
        ("visualize.py", ["--sead", "3"], "unknown flag --sead: did you mean --seed?"),
        ("visualize.py", [], "PATH: expected a policy file or run directory, got none; see --help"),
    ],
)
def test_a_typo_is_answered_without_torch(script, arguments, message):
    done, packages = imported(script, *arguments)
    answer = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and answer.startswith("error: ") and answer.endswith(message)
    assert packages.isdisjoint(SLOW)


def test_a_misspelled_environment_is_answered_without_torch():
    done, packages = imported("train_rl.py", "--env", "Coridor-v0")
    assert done.returncode == 2 and "did you mean 'Corridor-v0'" in done.stderr.splitlines()[-1]
    assert packages.isdisjoint({"torch", "stable_baselines3"})


@pytest.mark.parametrize("script", SCRIPTS)
def test_version(script):
    done, packages = imported(script, "--version")
    assert re.fullmatch(rf"expire-span-rl {re.escape(__version__)} \(Python 3\S+, PyTorch \S+\)\n", done.stdout)
    assert done.returncode == 0 and packages.isdisjoint(SLOW)


def completed(script: str, line: str, where: str) -> list[str]:
    """What bash offers for the last word of a command line once it has read the completion script at `where`."""
    words = line.split(" ")
    lookup = f"""
        source {where}
        COMP_WORDS=({" ".join(words[:-1])} "{words[-1]}"); COMP_CWORD={len(words) - 1}
        COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}
        $(complete -p {script} | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", lookup], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("script", "begun", "offered"),
    [
        ("train_rl.py", "--memory-", {"--memory-budget", "--memory-image-every"}),
        ("train_rl.py", "--win", {"--window"}),  # of another kind than the default
        ("train_rl.py", "--batch", {"--batch-size"}),  # of another agent
        ("train_rl.py", "--memory g", {"gru"}),
        ("train_rl.py", "--print", {"--print-completion"}),
        ("train_rl.py", "--print-completion f", {"fish"}),
        ("evaluate.py", "--st", {"--stochastic"}),
        ("visualize.py", "--vers", {"--version"}),
    ],
)
def test_bash_completes(script, begun, offered, tmp_path):
    done, packages = imported(script, "--print-completion", "bash")
    assert done.returncode == 0 and packages.isdisjoint(SLOW)
    (tmp_path / "completion").write_text(done.stdout)
    assert set(completed(script, f"{script} {begun}", str(tmp_path / "completion"))) == offered


@pytest.mark.parametrize(("shell", "mark"), [("zsh", "#compdef train_rl.py"), ("fish", "complete --no-files")])
def test_other_shells_complete(shell, mark):
    done, _ = imported("train_rl.py", "--print-completion", shell)
    assert done.returncode == 0 and mark in done.stdout and "window" in done.stdout


def ended(error: BaseException, capsys) -> tuple[int, str]:
    """Exit code and stderr of a script whose `main` raises `error`."""

    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    return int(stop.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (cli.UsageError("--x: expected 1, got 2"), 2, "--x: expected 1, got 2"),
        (ValueError("two\n  lines\tand tabs"), 2, "two lines and tabs"),
        (ValueError("red \x1b[31m and \u202ebackwards"), 2, "red \\x1b[31m and \\u202ebackwards"),
        (ValueError("a" * 1000 + "b" * 1000), 2, f"{'a' * 195} ... {'b' * 90}"),
        (ValueError("\x1b" * 280), 2, ("\\x1b" * 280)[:195] + " ... " + ("\\x1b" * 280)[-90:]),
        (EnvironmentFailed("My-v0: environment 3 failed at step 7"), 1, "My-v0: environment 3 failed at step 7"),
        (RolloutsEnded("actors failed"), 1, "actors failed"),
        (RuntimeError("out of memory"), 1, "RuntimeError: out of memory"),
        (FileNotFoundError(2, "No such file", "a"), 1, "FileNotFoundError: [Errno 2] No such file: 'a'"),
        (
            ModuleNotFoundError("No module named 'pygame'", name="pygame"),
            2,
            "cannot import a package that this command needs: No module named 'pygame'",
        ),
        (gym.error.DependencyNotInstalled("MuJoCo is not installed"), 2, "MuJoCo is not installed"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_are_one_line_and_an_exit_code(error, code, message, capsys):
    assert ended(error, capsys) == (code, f"error: {message}\n")


@pytest.mark.parametrize("error", [KeyError("a bug"), ImportError("cannot import name", name="expire_span_rl.envs")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        cli.run(lambda: (_ for _ in ()).throw(error))


def test_success_exits_with_0():
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: None)
    assert stop.value.code == 0


def test_a_reader_that_goes_away_is_no_error():
    """As in `train_rl.py --help | head -1`."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} {ROOT / 'train_rl.py'} --help | head -c 5"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "usage" and done.stderr == ""
