"""The examples, and the commands of docs/your_environment.md, as a newcomer runs them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from script_cases import ROOT

import expire_span_rl as es

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
PAGE = ROOT / "docs" / "your_environment.md"
SCRIPTS = ("train_rl.py", "evaluate.py", "visualize.py")


def python(*arguments: object, folder: Path = ROOT) -> str:
    """What Python prints, in a process of its own, in which the checkout's package can be imported."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def example(name: str, *arguments: object) -> str:
    return python(ROOT / "examples" / f"{name}.py", *arguments)


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install -r requirements-dev.txt")


def test_every_example_says_how_it_is_run_and_is_run_by_a_test():
    source = Path(__file__).read_text()
    for name in EXAMPLES:
        text = (ROOT / "examples" / name).read_text()
        assert f"examples/{name}" in text.split('"""')[1], name
        assert f'example("{name[:-3]}"' in source or f"examples/{name}" in PAGE.read_text(), name


def test_own_training_loop_learns_and_then_forgets():
    lines = re.findall(r"update (\d+): (\d+)% right, (\d+) live memories", example("own_training_loop", 100))
    updates, right, live = zip(*(map(int, line) for line in lines), strict=True)
    assert updates == (20, 40, 60, 80, 100)
    assert max(right) >= 95  # of four suits, at the end of 21 steps
    assert live[0] == 21 and min(live) < 18  # which update has the fewest depends on the machine's rounding


def test_own_memory_kind_passes_where_its_window_reaches():
    pattern = r"(\w+) with a window of (\d+): (\d+)% right, at most (\d+) live"
    lines = re.findall(pattern, example("own_memory_kind", 60_000))
    (own, own_window, own_right, own_live), (other, window, right, live) = lines
    assert (own, other) == ("alibi", "transformer_xl")
    assert int(own_right) >= 90 and int(own_live) == 11 <= int(own_window)  # all steps of an episode
    assert int(right) <= 45 and int(live) == int(window) + 1 < 11


@needs("optuna")
def test_the_sweep_prunes():
    output = example("optuna_sweep", 6, 12_000)
    trials = re.findall(r"trial (\d): (complete|pruned) after ([\d,]+) steps", output)
    assert len(trials) == 6
    assert {count for _, how, count in trials if how == "complete"} == {"12,160"}  # whole rollouts of 640 steps
    pruned = [int(count.replace(",", "")) for _, how, count in trials if how == "pruned"]
    assert pruned and max(pruned) < 12_160
    best = re.search(r"best: (\d+)% right with \{'learning_rate': ([\d.]+), 'gating': (True|False)\}", output)
    assert best is not None and 0 < float(best[2]) <= 2e-2


def test_control_loop_with_a_policy_from_the_repository():
    successes, milliseconds, steps = re.match(
        r"(\d+) of 5 episodes succeeded\nmean return [\d.]+, ([\d.]+) ms a step over ([\d,]+) steps",
        example("control_loop", ROOT / "pretrained" / "corridor-expire_span.safetensors", 5),
    ).groups()
    assert int(successes) == 5
    assert float(milliseconds) > 0 and int(steps.replace(",", "")) >= 15


MASKED = """
import gymnasium as gym
import numpy as np


class Masked(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(5)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(2, np.float32), {"action_mask": np.eye(5, dtype=np.int8)[3]}

    def step(self, action):
        assert action == 3
        self.time += 1
        return np.zeros(2, np.float32), 1.0, self.time == 4, False, {"action_mask": np.eye(5, dtype=np.int8)[3]}
"""


@pytest.mark.parametrize(
    "name, settings", [("my_envs.py:Recall-v0", {"wrap": ["stretch=1"]}), ("masked.py:Masked", {})]
)
def test_control_loop_with_a_file_of_yours_with_wraps_and_with_masks(name, settings, tmp_path):
    shutil.copy(ROOT / "examples" / "my_envs.py", tmp_path)
    (tmp_path / "masked.py").write_text(MASKED)
    env, policy = str(tmp_path / name), tmp_path / "policy.safetensors"
    es.PPO("none", env, num_envs=1, num_steps=8, **settings).save(policy)
    steps, mean_return = (41, "[0-9.]+") if settings else (4, "4")
    output = example("control_loop", policy, 1, env)
    assert re.fullmatch(rf"mean return {mean_return}, [0-9.]+ ms a step over {steps} steps\n", output)


@needs("wandb")
def test_wandb_offline_writes_every_update(tmp_path):
    output = example("wandb_offline", tmp_path, 4096)
    assert re.search(r"success rate \d+% after 4,096 steps", output)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert next(run.glob("*.wandb")).stat().st_size > 1000
    assert (tmp_path / "policy.safetensors").stat().st_size > 1000


RUNNER = """
import json, runpy, shlex, shutil, sys
sys.path.insert(0, "")
for number, (language, text) in enumerate(json.load(open("blocks.json"))):
    if language == "python":
        exec(compile(text, f"block {number}", "exec"), {"__name__": f"block_{number}"})
        continue
    for line in text.splitlines():
        program, *words = shlex.split(line)
        if program == "cp":
            shutil.copy(*words)
            continue
        sys.argv = words
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                sys.exit(f"{line}: exit code {stop.code}")
"""
"""Runs the page's blocks one after the other in one process. Processes of their own would mostly import."""
SHORT = "--num-envs 8 --total-timesteps 2048 --memory-image-every 0"
LEARNED = "--num-envs 32 --total-timesteps 6e4"
"""Two fifths of what the page's first training takes, and enough to learn its task."""


def test_the_page_about_your_environment_holds(tmp_path):
    """All of its commands, in order. Trainings are shorter than on the page, and the first one learns the task."""
    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert {language for language, _ in blocks} == {"sh", "python"}
    commands = [line for language, text in blocks if language == "sh" for line in text.splitlines()]
    assert all(line.startswith(tuple(f"python {script} " for script in SCRIPTS)) for line in commands[1:])
    trainings = [line for line in commands if " train_rl.py " in line]
    assert len(trainings) >= 6
    text = json.dumps([[language, text] for language, text in blocks])
    for i, line in enumerate(trainings):
        shorter = f"{line} {SHORT if i else LEARNED}"
        text = text.replace(json.dumps(line)[1:-1] + "\\n", json.dumps(shorter)[1:-1] + "\\n", 1)
    assert text.count(SHORT) == len(trainings) - 1 and text.count(LEARNED) == 1
    (tmp_path / "blocks.json").write_text(text)
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for script in SCRIPTS:
        shutil.copy(ROOT / script, tmp_path)
    output = python("-c", RUNNER, folder=tmp_path)
    assert "'card/suit': Discrete(5)" in output
    report = json.loads((tmp_path / "recall.json").read_text())
    rates = {policy["memory"]: policy["success_rate"] for policy in report["policies"]}
    assert rates["expire_span"] >= 0.95
    assert max(rates["none"], rates["gru"]) <= 0.45
    assert b"<html" in (tmp_path / "memory.html").read_bytes()[:500]
    assert (tmp_path / "recall.safetensors").is_file()
    for command in commands:
        for run in re.findall(r"--run-dir (\S+)", command):
            assert (tmp_path / run / "policy.safetensors").is_file()
