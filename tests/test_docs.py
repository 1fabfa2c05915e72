"""The documentation holds: its commands run, its excerpts are those of the code, its site is built without a request.

A command is run as it stands, with flags after it that make it short. `PARSED` lists the ones that are only parsed.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_commands import PAGES, blocks, commands, inline_commands, page_name
from script_cases import ROOT

import expire_span_rl as es
from expire_span_rl import cli
from expire_span_rl.cli.evaluate import EvaluateConfig
from expire_span_rl.cli.settings import parse_config

SCRIPTS = ("train_rl.py", "train_sequence.py", "evaluate.py", "visualize.py")
PARSED = {
    r"python -m benchmarks\.": "minutes to days of both cores; their own tests run them small",
    r"python train_rl.py .*--(num-actors|ray-address)\b": "starts Ray; tests/agents/test_ray_actors.py do",
    r"python evaluate.py .*1(28|00)000": "100,000 steps and more of a policy that was hardly trained",
    r"python evaluate.py runs/generalisation/": "a policy of benchmarks.generalisation, hours of both cores",
    r"\.venv/bin/ray start\b": "starts a cluster that outlives the test",
    r"make (demo|test|setup|docs|lint|typecheck)$": "set up the machine, or run this test",
    r"pip install\b": "changes the machine; tests/test_packaging.py installs the package",
    r"git\b": "needs a server or changes the checkout",
}
"""What is not run, and why. The real parser reads it, as far as there is one."""
SMALL = ["--num-envs", "4", "--num-steps", "16", "--total-timesteps", "128", "--no-progress-bar", "--overwrite"]
SHORT = {
    "train_rl.py": [*SMALL, "--memory-image-every", "0", "--n-eval-episodes", "2"],
    "train_sequence.py": [*SMALL[:4], "--total-blocks", "3", *SMALL[6:], "--num-minibatches", "2"],
    "evaluate.py": ["--episodes", "2", "--max-steps", "100000"],
    "visualize.py": ["--episodes", "1", "--max-steps", "100000"],
}
"""Flags that make a command short. The last of two equal flags counts."""
UNLESS_SAID = {"visualize.py": ["--audit", "0"]}
"""Flags before those of a command. Audits of long episodes take half a minute, and have tests of their own."""
SHORT_PYTHON = {
    "total_timesteps=1_000_000": "total_timesteps=512",
    "num_envs=128": "num_envs=8",
    "episodes=1000": "episodes=4",
}
SHORT_WORDS = {'"stream_length": 2000': '"stream_length": 100'}
UNTESTED_BLOCKS = {
    "envs/mine.py": "a task of which only the last lines are shown",
    "envs/registration.py": "the line of a task that there is not",
}
ELSEWHERE = {"docs/your_environment.md": "tests/test_examples.py runs all of it, in full"}
RUNNER = """
import json, os, runpy, sys
import expire_span_rl.evaluation, expire_span_rl.visualization, expire_span_rl.training

def run_steps():
    sys.path.insert(0, "")
    for name, words in json.load(open("steps.json")):
        if name == "python":
            exec(compile(words, "block", "exec"), {"__name__": "block"})
            continue
        sys.argv = words
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                sys.exit(f"{name}: exit code {stop.code}")

for folder in sys.stdin:
    child = os.fork()
    if child == 0:
        os.chdir(folder.strip())
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
        run_steps()
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs the steps in each folder whose path it reads, in a copy of itself. Processes of their own would mostly spend
their time on imports."""


def parsed_only(command: str) -> bool:
    return any(re.match(pattern, command) for pattern in PARSED)


def words_of(command: str) -> list[str]:
    """The words of a command, without its comment and the variables before it."""
    words = shlex.split(command, comments=True)
    while "=" in words[0]:
        words = words[1:]
    return words


def shortened(words: list[str]) -> list[str]:
    """A script's command line with flags that make it short."""
    for long, short in SHORT_WORDS.items():
        words = [word.replace(long, short) for word in words]
    script, arguments = words[0], words[1:]
    if "--help" in arguments:
        return words
    flags = SHORT.get(script, [])
    if script.startswith("train") and "--resume" in arguments:
        longer = ["--total-blocks", "5"] if "--total-blocks" in arguments else []  # SHORT's trainings have 3
        return [*words, *longer, "--no-progress-bar"]
    if script == "train_rl.py" and not any(argument.startswith("sb3-") for argument in arguments):
        flags = [*flags, "--num-minibatches", "2"]
    return [script, *UNLESS_SAID.get(script, []), *arguments, *flags]


def steps_of(page: Path) -> list[tuple[str, list[str] | str]]:
    """What is run of a page, in order: (command, its words) and ("python", the block)."""
    steps: list[tuple[str, list[str] | str]] = []
    for block in blocks(page):
        if block.language == "python" and not block.title:
            text = block.text
            for long, short in SHORT_PYTHON.items():
                text = text.replace(long, short)
            steps.append(("python", text))
        elif block.language == "sh":
            for command in commands(block.text):
                if not parsed_only(command):
                    program, *words = words_of(command)
                    assert program == "python", f"{page_name(page)}: {command}: neither run nor in PARSED"
                    steps.append((command, shortened(words)))
    return steps


def whole_files(page: Path) -> dict[str, str]:
    """The files that a page shows in full, and that are not in the repository."""
    titled = {block.title: block.text for block in blocks(page) if block.language == "python" and block.title}
    return {name: text for name, text in titled.items() if name not in UNTESTED_BLOCKS and not (ROOT / name).exists()}


@pytest.fixture(scope="module")
def runner() -> Iterator[subprocess.Popen[str]]:
    """A process that runs the steps in a folder: it reads the folder's path and answers with an exit code."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", RUNNER], env=env, text=True, **pipes) as process:
        yield process
        process.stdin.close()


RUN_PAGES = [page for page in PAGES if page_name(page) not in ELSEWHERE and steps_of(page)]


@pytest.mark.parametrize("page", RUN_PAGES, ids=page_name)
def test_the_commands_of_a_page_run(page, run_dir, runner, tmp_path):
    steps = steps_of(page)
    for name in ("examples", "pretrained"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in SCRIPTS:
        shutil.copy(ROOT / script, tmp_path)
    for name, text in whole_files(page).items():
        (tmp_path / name).write_text(text)
    if not any("--run-dir" in words and "runs/x" in words for _, words in steps):
        shutil.copytree(run_dir, tmp_path / "runs" / "x")  # what pages call a run of the reader's
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    print(tmp_path, file=runner.stdin, flush=True)
    code = runner.stdout.readline().strip()
    assert code == "0", (tmp_path / "output.txt").read_text()[-2000:]
    for _, words in steps:  # what a command says that it writes
        if isinstance(words, list) and words[0] in SCRIPTS and "--help" not in words:
            for flag, file in itertools.pairwise(words):
                if flag in ("--json", "--plot", "--out", "--png", "--video"):
                    assert (tmp_path / file).stat().st_size > 100, file


STAGES = {
    "comparison": "Sweep.search Sweep.run",
    "coverage": "_missing_ids",
    "environments": "contenders",
    "generalisation": "results_of",
    "learning": "results_of",
    "prediction": "learn",
    "scaling": "measure_local",
    "sequence": "Bench.run",
    "tasks": "run",
    "throughput": "current_commit",
    "training": "trainer_of",
}
"""By benchmark: the function that it calls once its command line is read and checked, or those of which it calls
one."""


class Reached(BaseException):
    """The command line was accepted, and work would begin."""


def begin(*arguments: object) -> None:
    """In place of a benchmark's work: reads the flags of train_rl.py that it was given."""
    for argument in arguments:
        if isinstance(argument, list) and argument and all(isinstance(word, str) for word in argument):
            parse_config(argument)
        elif isinstance(argument, list) and argument and isinstance(argument[0], tuple):  # jobs of `generalisation`
            for parts in (part for job in argument for part in job if isinstance(part, list)):
                parse_config([word for word in parts if isinstance(word, str)])
    raise Reached


def check_parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises unless the command's own parser takes it."""
    words = words_of(command)
    if words[:2] == ["python", "-m"]:
        name = words[2].removeprefix("benchmarks.")
        module = importlib.import_module(f"benchmarks.{name}")
        for stage in STAGES[name].split():
            monkeypatch.setattr(f"benchmarks.{name}.{stage}", begin)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words[3:]])
        with pytest.raises(Reached):
            module.main()
        monkeypatch.undo()
    elif words[:2] == ["python", "train_rl.py"]:
        parse_config(words[2:])
    elif words[:2] == ["python", "evaluate.py"]:
        cli.parse(EvaluateConfig, words[2:], "")
    elif words[0] == "make":
        env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        done = subprocess.run(
            ["make", "-n", *words[1:]], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in words[2:]:
            name = re.search(r"\[(\w+)\]", word)
            assert word in ("-r", ".", "-e") or (name and name[1] in extras) or (ROOT / word).is_file(), word
    elif words[0].endswith("ray"):
        scripts = pytest.importorskip("ray.scripts.scripts")
        scripts.cli.commands[words[1]].make_context(words[1], words[2:])
    else:
        assert words[0] == "git", f"{command}: nothing parses it"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_long_commands_of_a_page_are_accepted(page, in_folder, monkeypatch):
    """Their own parsers and checks read them; no work begins."""
    text = "".join(block.text for block in blocks(page) if block.language == "sh")
    long = [command for command in commands(text) if parsed_only(command)]
    (in_folder / "pretrained").symlink_to(ROOT / "pretrained")
    for command in dict.fromkeys([*long, *inline_commands(page)]):
        check_parsed(command, monkeypatch)
        monkeypatch.chdir(in_folder)


def test_no_command_is_in_a_block_that_is_not_read():
    for page in PAGES:
        assert not re.search(
            r"^    +(python|make|pip) ", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE
        ), page


def test_excerpts_are_those_of_the_code():
    found = 0
    for page in PAGES:
        for block in blocks(page):
            is_shown = block.title not in UNTESTED_BLOCKS and (ROOT / block.title).is_file()
            if block.language == "python" and is_shown:
                lines = [line.strip() for line in block.text.splitlines() if line.strip()]
                code = [line.strip() for line in (ROOT / block.title).read_text().splitlines() if line.strip()]
                starts = range(len(code) - len(lines) + 1)
                assert any(code[i : i + len(lines)] == lines for i in starts), f"{page_name(page)}: {block.title}"
                found += 1
            elif block.language == "python":
                ast.parse(block.text)
    assert found >= 3


def keys_in(page: str, heading: str) -> set[str]:
    """The names in the tables of a page's section."""
    section = re.split(r"^#+ ", (ROOT / page).read_text().partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return set(re.findall(r"`(\w+)`", "\n".join(rows)))


def test_the_keys_of_the_json_files_are_those_of_the_pages():
    policy = ROOT / "pretrained" / "corridor-expire_span.safetensors"
    kwargs = {"max_length": 6}
    evaluated = es.evaluate(policy, episodes=2, env_kwargs=kwargs)
    listed = keys_in("docs/getting_started.md", "Evaluate")
    of_tasks = {"bits", "correct_share", "correct_share_by_signals", "episodes_with_success", "success_by_episode"}
    assert evaluated.keys() | evaluated["buckets"][0].keys() == listed - of_tasks
    (episode,) = es.show(policy, seed=3, env_kwargs=kwargs).numbers["episodes"]
    listed = keys_in("docs/viewer.md", "The JSON file")
    found = episode.keys() | episode["layers"][0].keys() | episode["layers"][0]["attention"][0].keys()
    found |= episode["audit"].keys() | episode["transformer_xl"].keys() | episode["story"].keys()
    of_spaces = {"means", "continuous", "action_bounds", "action_texts", "taken", "entries"}
    assert found == listed - of_spaces


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def test_pages_that_the_code_names_are_there():
    named = set()
    for file in [path for path in ROOT.rglob("*.py") if ".venv" not in path.parts and ".typecheck" not in path.parts]:
        named |= set(re.findall(r"\b(docs/[\w/]+\.md)(#[\w-]+)?", file.read_text()))
    assert len(named) >= 5
    for name, anchor in named:
        assert (ROOT / name).is_file(), name
        assert not anchor or anchor[1:] in anchors(ROOT / name), name + anchor


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="pip install -r requirements-dev.txt")
def test_the_site_is_built_without_warnings_and_requests_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        requested = re.findall(r"<(?:script|img|iframe|source)[^>]*\bsrc=\"?([^\" >]+)", text)
        requested += re.findall(r"<link[^>]*\brel=\"?stylesheet[^>]*\bhref=\"?([^\" >]+)", text)
        assert not [link for link in requested if re.match(r"(https?:)?//", link)], page
    assert "<math" in (tmp_path / "forgetting.html").read_text()
    reference = (tmp_path / "api" / "python.html").read_text()
    assert all(f'id="expire_span_rl.api.{name}"' in reference for name in ("PPO", "IMPALA", "load", "evaluate", "show"))
