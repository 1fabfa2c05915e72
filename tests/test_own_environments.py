"""One's own environments on the command lines: named, imported only where the user says so, and failing in one line."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from script_cases import SMALL, call, log

import evaluate
import expire_span_rl as es
import train_rl
import visualize
from expire_span_rl.envs import naming
from expire_span_rl.policies import load_policy, save_policy
from expire_span_rl.policies.io import policy_info

SOURCE = '''
import gymnasium as gym
import numpy as np


class Recall(gym.Env):
    """Shows 0 or 1, then nothing, and pays 1 for the action that names it."""

    observation_space, action_space = gym.spaces.Box(0, 1, (2,), np.float32), gym.spaces.Discrete(2)
    LENGTH = 4

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        np.random.RandomState(seed)  # takes no seeds of 2^32 and more
        self.shown, self.time = int(self.np_random.integers(2)), 0
        return np.eye(2, dtype=np.float32)[self.shown], {}

    def step(self, action):
        self.time += 1
        over = self.time == self.LENGTH
        info = {"outcome": "right" if action == self.shown else "wrong", "is_success": None} if over else {}
        return np.zeros(2, np.float32), float(over and action == self.shown), over, False, info


class Endless(Recall):
    LENGTH = 10**9


class Breaks(Recall):
    def step(self, action):
        if self.np_random.random() < 0.01:
            raise KeyError("the door is gone")
        return super().step(action)


class Far(Recall):
    def step(self, action):
        observation, *rest = super().step(action)
        return observation + 5, *rest


class Cells(Recall):
    observation_space = gym.spaces.Box(0, 255, (3, 3, 3), np.uint8)

    def reset(self, **options):
        return np.full((3, 3, 3), 1 + super().reset(**options)[0].argmax(), np.uint8), {}

    def step(self, action):
        return np.zeros((3, 3, 3), np.uint8), *super().step(action)[1:]


for name in ("Recall", "Endless", "Breaks", "Far", "Cells"):
    gym.register(f"Own{name}-v0", globals()[name])
'''


def _forget() -> None:
    """As in a process in which nothing of the user's was imported."""
    sys.modules.pop("own_envs", None)
    for memory in (naming._imported, naming._registered):
        for name in [name for name in memory if "own_envs" in name]:
            del memory[name]
    for id in [id for id in gym.registry if id.startswith("Own")]:
        del gym.registry[id]


@pytest.fixture
def forget(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A folder with own_envs.py, which nobody has imported; and what makes it so again."""
    (in_folder / "own_envs.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    _forget()
    yield _forget
    _forget()


RUN = [*SMALL, "--memory", "gru", "--total-timesteps", "256", "--memory-image-every", "0", "--run-dir", "x"]
SB3_RUN = [
    "--agent", "sb3-ppo", "--num-envs", "8", "--num-steps", "16", "--batch-size", "64", "--total-timesteps", "256",
    "--torch-threads", "1", "--no-progress-bar", "--run-dir", "x",
]  # fmt: skip
PLAYED = ["x", "--episodes", "8", "--num-envs", "4", "--torch-threads", "1", "--json", "out.json"]


@pytest.mark.parametrize(
    "flags, named, hint",
    [
        (
            ["--env", "own_envs.py:OwnRecall-v0"],
            ["--env", "own_envs.py:OwnRecall-v0"],
            "--env own_envs.py:OwnRecall-v0",
        ),
        (["--env", "own_envs:OwnRecall-v0"], ["--import", "own_envs"], "--env own_envs:OwnRecall-v0"),
        (["--import", "own_envs", "--env", "OwnRecall-v0"], ["--import", "own_envs.py"], "--import own_envs"),
        (["--import", "own_envs", "--env", "OwnRecall-v0"], ["--env", "own_envs:OwnRecall-v0"], "--import own_envs"),
    ],
)
def test_what_a_policy_file_names_is_imported_only_if_the_user_names_it(
    flags, named, hint, forget, monkeypatch, capsys
):
    assert call(train_rl, [*RUN, *flags], monkeypatch) == 0
    for script, arguments in ((evaluate, PLAYED), (visualize, ["x"])):
        forget()
        capsys.readouterr()
        assert call(script, arguments, monkeypatch) == 2
        error = capsys.readouterr().err
        assert error == (
            "error: x: expected its environment OwnRecall-v0 to be imported, which a policy file cannot ask for; where "
            f"you trust it, name it yourself: {hint}\n"
        )
        assert "own_envs" not in sys.modules
        assert call(script, [*arguments, *named], monkeypatch) == 0
    report = json.loads(Path("out.json").read_text())
    assert report["env"] == "OwnRecall-v0" and report["policies"][0]["mean_episode_length"] == 4
    forget()
    with pytest.raises(ValueError, match="where you trust it, name it yourself"):
        es.evaluate("x")
    naming.import_module("own_envs.py")  # as `import own_envs` would
    assert es.evaluate("x", episodes=4)["episodes"] == 4


def test_a_run_goes_on_with_the_imports_that_it_began_with(forget, monkeypatch, capsys):
    assert call(train_rl, [*RUN, "--import", "own_envs", "--env", "own_envs.py:OwnRecall-v0"], monkeypatch) == 0
    config = json.loads(Path("x/config.json").read_text())
    assert (config["env"], config["imports"]) == ("own_envs.py:OwnRecall-v0", ["own_envs"])
    Path("x/config.json").write_text(json.dumps({**config, "total_timesteps": 384}))
    forget()
    capsys.readouterr()
    assert call(train_rl, ["--resume", "x", "--no-progress-bar"], monkeypatch) == 0
    file = Path("own_envs.py").resolve()  # from the folder that the run was started in
    assert capsys.readouterr().err.startswith(f"imports own_envs, {file}, as when the run began\n")
    assert [float(row["time/total_timesteps"]) for row in log(Path("x"))] == [128, 256, 384]


@pytest.mark.parametrize("flags", [RUN, SB3_RUN], ids=["ppo", "sb3-ppo"])
def test_a_resumed_runs_policies_name_files_as_those_of_a_run_that_was_never_stopped(flags, forget, monkeypatch):
    """Not by their paths on this machine, whatever the folder is that it is resumed in. Evaluations find them too."""
    named = ["--import", "own_envs.py", "--env", "own_envs.py:OwnRecall-v0"]
    assert call(train_rl, [*flags, *named, "--eval-every", "128", "--n-eval-episodes", "4"], monkeypatch) == 0
    run = Path("x").resolve()
    config = json.loads((run / "config.json").read_text())
    names = {"env": "own_envs.py:OwnRecall-v0", "imports": ["own_envs.py"]}
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    forget()
    assert call(train_rl, ["--resume", run, "--no-progress-bar", "--total-timesteps", "384"], monkeypatch) == 0
    for file in (run / "policy.safetensors", run / "checkpoints/policy_000000384.safetensors"):
        assert {name: policy_info(file)[name] for name in names} == names
    assert json.loads((run / "config.json").read_text()) == {**config, "total_timesteps": 384}
    assert [bool(row["eval/mean_reward"]) for row in log(run)] == [True] * 3


def test_a_run_with_another_unit_of_its_actions_is_not_resumed(in_folder, monkeypatch, capsys):
    """Until 30 November 2026, float32's largest number was the unit between bounds like these."""
    flags = [*SMALL, "--env", "Pendulum-v1", "--memory", "gru", "--total-timesteps", "256", "--quiet", "--run-dir", "x"]
    assert call(train_rl, flags, monkeypatch) == 0
    policy, info = load_policy("x")
    end = float(np.finfo(np.float32).max)
    policy.config = dataclasses.replace(policy.config, actions={**policy.config.actions, "low": [-end], "high": [end]})
    save_policy(policy, "x/policy.safetensors", info)
    capsys.readouterr()
    for script, arguments, named in (
        (train_rl, ["--resume", "x", "--total-timesteps", "384"], "x: actions"),
        (evaluate, PLAYED, "x/policy.safetensors: "),
    ):
        assert call(script, arguments, monkeypatch) == 2
        error = capsys.readouterr().err
        assert f"error: {named}" in error and "expected bounds up to 1e+30, got farther ones" in error
    assert len(log(Path("x"))) == 2


def test_large_seeds_and_texts_in_infos_do_no_harm(forget, monkeypatch):
    """An environment that seeds a generator of 32 bits, and tells of its end in words and with None."""
    assert call(train_rl, [*RUN, "--env", "own_envs.py:OwnRecall-v0", "--seed", 5000], monkeypatch) == 0
    assert call(evaluate, [*PLAYED, "--seed", 5000], monkeypatch) == 0
    figures = json.loads(Path("out.json").read_text())["policies"][0]
    assert (figures["episodes"], figures["success_rate"], figures["mean_episode_length"]) == (8, None, 4)


def test_episodes_are_the_same_whatever_was_played_before(forget, monkeypatch):
    """Of stochastic policies, whose actions differ; what is shown is drawn by the environment's own generator."""
    begun = []
    assert call(train_rl, [*RUN, "--env", "own_envs.py:OwnRecall-v0"], monkeypatch) == 0
    module = sys.modules["own_envs"]
    reset = module.Recall.reset

    def counted(self, *, seed=None, options=None):
        out = reset(self, seed=seed, options=options)
        begun[-1].append(self.shown)
        return out

    def distracted(self, action):
        self.np_random.random(int(self.np_random.integers(5)) + len(begun))
        return step(self, action)

    step = module.Recall.step
    monkeypatch.setattr(module.Recall, "reset", counted)
    monkeypatch.setattr(module.Recall, "step", distracted)
    for _ in range(2):
        begun.append([])
        es.evaluate("x", episodes=40, num_envs=4)
    assert len(begun[0]) >= 40 and begun[0] == begun[1] and 0 < sum(begun[0]) < len(begun[0])


def test_an_evaluation_that_does_not_end_is_stopped(forget, monkeypatch, capsys):
    assert call(train_rl, [*RUN, "--env", "own_envs.py:OwnEndless-v0"], monkeypatch) == 0
    capsys.readouterr()
    assert call(evaluate, [*PLAYED, "--max-steps", "50"], monkeypatch) == 1
    assert capsys.readouterr().err == (
        "error: OwnEndless-v0, environment 0: expected an episode of at most 50 steps, it goes on; --max-steps allows "
        "longer ones (max_steps in Python), and many environments take a time limit: "
        "--env-kwargs '{\"max_episode_steps\": 1000}'\n"
    )
    arguments = [*PLAYED, "--max-steps", "30", "--env-kwargs", '{"max_episode_steps": 30}']
    assert call(evaluate, arguments, monkeypatch) == 0
    assert json.loads(Path("out.json").read_text())["policies"][0]["mean_episode_length"] == 30


def test_an_environment_that_fails_leaves_a_checkpoint(forget, monkeypatch, capsys):
    assert call(train_rl, [*RUN, "--env", "own_envs.py:OwnBreaks-v0", "--total-timesteps", "99999"], monkeypatch) == 1
    stopped, error = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: OwnBreaks-v0, environment ") and error.endswith("KeyError: 'the door is gone'")
    steps = len(log(Path("x"))) * 128 if Path("x/progress.csv").read_text() else 0
    assert stopped == f"stopped after {steps:,} steps; --resume x goes on"
    assert {"checkpoint.safetensors", "policy.safetensors"} <= {file.name for file in Path("x").iterdir()}
    monkeypatch.setattr(sys.modules["own_envs"].Breaks, "step", sys.modules["own_envs"].Recall.step)
    config = json.loads(Path("x/config.json").read_text())
    Path("x/config.json").write_text(json.dumps({**config, "total_timesteps": steps + 128}))
    assert call(train_rl, ["--resume", "x", "--no-progress-bar"], monkeypatch) == 0
    assert float(log(Path("x"))[-1]["time/total_timesteps"]) == steps + 128


def test_what_leaves_its_bounds_is_said_in_one_line(forget, monkeypatch, capsys):
    assert call(train_rl, [*RUN, "--env", "own_envs.py:OwnFar-v0"], monkeypatch) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "bounds" in line]
    assert warned == [
        "warning: OwnFar-v0: observation 'observation' is outside the bounds of its space at times; it is read as it is"
    ]


@pytest.mark.parametrize("flags, kind", [([], "picture"), (["--encoder", "cells"], "cells")])
def test_cells_that_do_not_say_so_are_read_as_such_on_demand(flags, kind, forget, monkeypatch):
    """Which evaluation knows from the policy's file."""
    asked = ["--env", "own_envs.py:OwnCells-v0", *flags]
    small = kind == "picture"  # too small a picture for a CNN is a vector
    assert call(train_rl, [*RUN, *asked], monkeypatch) == 0
    policy = es.load("x")
    assert policy.config.observation["image"]["kind"] == ("vector" if small else "cells")
    assert policy.info["env_kwargs"] == ({} if small else {"encoder": "cells"})
    assert call(evaluate, PLAYED, monkeypatch) == 0


def test_observations_are_normalised_unless_the_user_does_not_want_it(forget, monkeypatch):
    for flags, normalised in (([], True), (["--no-normalize-observations"], False)):
        asked = [*RUN, "--env", "own_envs.py:OwnRecall-v0", "--overwrite", *flags]
        assert call(train_rl, asked, monkeypatch) == 0
        assert es.load("x").config.observation["observation"].get("normalize", False) is normalised


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_processes_train_as_one_process_does(vectorization, forget, monkeypatch):
    asked = [*RUN, "--num-envs", "2", "--env", "own_envs.py:OwnRecall-v0", "--vectorization", vectorization]
    assert call(train_rl, [*asked, "--total-timesteps", "64"], monkeypatch) == 0
    assert [float(row["rollout/ep_len_mean"]) for row in log(Path("x"))] == [4, 4]
    expected = es.PPO(
        "gru", sys.modules["own_envs"].Recall, num_envs=2, num_steps=16, num_minibatches=2, torch_threads=1
    )
    expected.learn(64)
    for name, tensor in es.load("x").state_dict().items():
        assert (expected.policy.state_dict()[name].cpu() == tensor).all(), name


BAD = {
    "no such module": (["--env", "gone_envs:Own-v0"], "gone_envs: there is no such module"),
    "no such file": (["--env", "gone_envs.py:Own-v0"], "expected a Python file, there is none"),
    "no such import": (["--import", "gone_envs"], "gone_envs: there is no such module"),
    "no such id": (["--env", "own_envs.py:OwnRecal-v0"], "got 'OwnRecal-v0'; did you mean 'OwnRecall-v0'?"),
    "no id": (["--env", "own_envs.py:"], "own_envs.py: expected one of its ids and classes"),
    "raises": (["--env", "raises.py:Own-v0"], "raises.py: cannot be imported: ZeroDivisionError: division by zero"),
    "missing dependency": (["--env", "needy.py:Own-v0"], "needy.py: cannot be imported: No module named 'wind'"),
    "encoder": (["--encoder", "cell"], "--encoder: expected one of auto, cells, plain, got 'cell'; did you mean"),
    "vectorization": (["--vectorization", "x"], "--vectorization: expected one of auto, sync, async, got 'x'"),
    "vectorization with wraps": (
        ["--wrap", "stretch=2", "--vectorization", "async"],
        "--vectorization: expected auto or sync with --wrap, got async",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_imported_is_told_in_one_line(case, forget, monkeypatch, capsys):
    Path("raises.py").write_text("1 / 0")
    Path("needy.py").write_text("import wind")
    arguments, message = BAD[case]
    assert call(train_rl, [*RUN, *arguments], monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not Path("x").exists()
