"""What may go wrong while a training runs: signals, environments that fail in every way, and numbers that are not
finite."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from script_cases import FORGETFUL, ROOT, SHORT, SMALL, call
from torch import Tensor

import expire_span_rl as es
import train_rl
from expire_span_rl.agents import Trainer, guard
from expire_span_rl.agents.checkpoint import load_checkpoint
from expire_span_rl.agents.guard import LARGEST_WEIGHT, MOST_SKIPPED, NotFinite, SkippedUpdate, TrainingEnded
from expire_span_rl.agents.rollout import acting_learning_difference
from expire_span_rl.agents.storage import check_outputs
from expire_span_rl.building import build
from expire_span_rl.envs import EnvError, EnvironmentFailed, EnvironmentWarning, make_env, make_vec_env
from expire_span_rl.envs.env_wrappers import VectorPreviousActionReward
from expire_span_rl.envs.timeout import Overdue, call_within
from expire_span_rl.evaluation import EndlessEpisode
from expire_span_rl.interrupts import blocked
from expire_span_rl.policies.encoders.vector import HUGE_VARIANCE
from expire_span_rl.settings import resolve

TRAIN = [*SMALL, *FORGETFUL, "--device", "cpu", "--quiet", "--memory-image-every", "0"]
SIGNALS = [
    pytest.param(signal.SIGINT, 130, "interrupted", id="SIGINT"),
    pytest.param(signal.SIGTERM, 143, "terminated (SIGTERM)", id="SIGTERM"),
    pytest.param(signal.SIGHUP, 129, "the terminal closed (SIGHUP)", id="SIGHUP"),
]
WAYS = ["one by one", "as a batch", "in wraps"]


class Odd(Exception):
    """An error of a stranger's own."""


class OddBase(BaseException):
    """One that `except Exception` does not catch."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "KeyError": lambda: KeyError("gone"),
    "ValueError": lambda: ValueError("gone"),
    "AssertionError": AssertionError,
    "ZeroDivisionError": lambda: ZeroDivisionError("gone"),
    "RuntimeError": lambda: RuntimeError("gone\nand more"),
    "OSError": lambda: OSError(5, "gone"),
    "MemoryError": MemoryError,
    "StopIteration": StopIteration,
    "Odd": Odd,
    "SystemExit": lambda: SystemExit(0),
    "GeneratorExit": GeneratorExit,
    "OddBase": OddBase,
    "EnvError": lambda: EnvError("gone"),
    "TypeError": lambda: TypeError("gone"),
    "TimeoutError": TimeoutError,
    "BrokenPipeError": BrokenPipeError,
}
VALUES: dict[str, tuple[Any, str]] = {
    "nan": (np.array([0, np.nan], np.float32), "observation 'seen': expected finite numbers, got nan"),
    "inf": (np.array([0, np.inf], np.float32), "observation 'seen': expected finite numbers, got inf"),
    "-inf": (np.array([0, -np.inf], np.float32), "observation 'seen': expected finite numbers, got -inf"),
    "too large": (np.array([0, 1e39]), "observation 'seen': expected finite numbers, got inf"),
    "shape": (np.zeros(3, np.float32), "observation 'seen': expected float32[2], got float32[3]"),
    "text": (np.array(["a", "b"]), "observation 'seen': expected float32[2], got <U1[2]"),
    "complex": (np.zeros(2, complex), "observation 'seen': expected float32[2], got complex128[2]"),
    "object": (
        np.array([None, None]),
        "observation 'seen': expected float32[2], got array([None, None], dtype=object)",
    ),
    "none": (None, "observation 'seen': expected float32[2], got None"),
}
REWARDS: dict[str, tuple[Any, str]] = {
    "nan": (float("nan"), "reward: expected a finite number that float32 can hold, got nan"),
    "inf": (float("inf"), "reward: expected a finite number that float32 can hold, got inf"),
    "-inf": (-float("inf"), "reward: expected a finite number that float32 can hold, got -inf"),
    "too large": (1e39, "reward: expected a finite number that float32 can hold, got 1e+39"),
    "numpy nan": (np.float32("nan"), "reward: expected a finite number that float32 can hold, got nan"),
    "text": ("1", "reward: expected a number, got str"),
    "two": (np.zeros(2), "reward: expected a number, got float64[2]"),
}
AT = 5  # the step, of the first environment, at which something is wrong


class Stranger(gym.Env):
    """Goes on well until something is set, here, in the class: `fails` is raised, `gives` is observed, `pays` is the
    reward, `hangs` is called, `says` is the info of an episode that ends; all at step `AT` of environment 1 of any
    number."""

    observation_space = spaces.Dict({"seen": spaces.Box(-1, 1, (2,), np.float32), "cue": spaces.Discrete(4)})
    action_space = spaces.Discrete(2)
    fails: Callable[[], BaseException] | None = None
    gives: tuple[Any] | None = None
    cue: Any = 1
    pays: Any = 0.5
    hangs: Callable[[], Any] | None = None
    says: dict[str, Any] | None = None
    made = 0

    def __init__(self):
        self.index = Stranger.made
        Stranger.made += 1
        self.total = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return {"seen": np.zeros(2, np.float32), "cue": np.int64(0)}, {}

    def step(self, action):
        self.t += 1
        self.total += 1
        wrong = self.index == 1 and self.total == AT
        if wrong and Stranger.fails is not None:
            raise Stranger.fails()
        if wrong and Stranger.hangs is not None:
            Stranger.hangs()
        seen = Stranger.gives[0] if wrong and Stranger.gives is not None else np.full(2, self.t / 100, np.float32)
        observation = {"seen": seen, "cue": Stranger.cue if wrong else np.int64(2)}
        reward = Stranger.pays if wrong else 0.5
        if wrong and Stranger.says is not None:
            return observation, reward, True, False, Stranger.says
        return observation, reward, self.t == 50, False, {}


class StrangerBatch(gym.vector.SyncVectorEnv):
    """The same as a vector of its own."""

    def __init__(self, num_envs: int):
        super().__init__([Stranger] * num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


@pytest.fixture(autouse=True)
def strangers() -> Iterator[None]:
    """`Strange-v0`, which behaves, and nothing that an earlier test has set."""
    gym.register("Strange-v0", entry_point=Stranger)
    usual = {"fails": None, "gives": None, "cue": 1, "pays": 0.5, "hangs": None, "says": None, "made": 0}
    for name, value in {**usual, "metadata": {"render_modes": []}}.items():
        setattr(Stranger, name, value)
    yield
    del gym.registry["Strange-v0"]


def stranger(way: str, **settings: Any) -> gym.vector.VectorEnv:
    """Two environments, vectorised in one of `WAYS`."""
    if way == "as a batch":
        gym.registry["Strange-v0"].vector_entry_point = StrangerBatch
    wraps = {"wraps": ["episodes=2"]} if way == "in wraps" else {}
    env = make_vec_env("Strange-v0", 2, **wraps, **settings)
    if way == "as a batch":
        for i, one in enumerate(env.unwrapped.envs):
            one.index, one.total = i, 0
    env.reset(seed=7)
    return env


def failure(env: gym.vector.VectorEnv) -> str:
    """What is said of the environment that fails at step AT."""
    with pytest.raises(EnvironmentFailed) as failed:
        for _ in range(AT + 1):
            env.step(np.zeros(2, int))
    env.close()
    return str(failed.value)


# Environments that were made for something that cannot begin


class Counted(Stranger):
    """Counts those that are open; `limit`: so many can be made."""

    opened = 0
    limit = 99

    def __init__(self):
        if Counted.opened >= Counted.limit:
            raise RuntimeError("the port is in use")
        super().__init__()
        Counted.opened += 1
        self.is_open = True

    def close(self):
        Counted.opened -= self.is_open
        self.is_open = False


class Unsupported(Counted):
    action_space = spaces.Box(0, 5, (2,), np.int64)


class CountedBatch(gym.vector.SyncVectorEnv):
    def __init__(self, num_envs: int):
        super().__init__([Unsupported] * num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


def _one_less():
    Counted.limit = 2
    return Counted()


def _other_spaces():
    env = Counted()
    if Counted.opened > 1:
        env.action_space = spaces.Discrete(3)
    return env


def _of_an_id(env_class, **settings):
    gym.registry["Strange-v0"].entry_point = env_class
    return es.PPO("none", "Strange-v0", num_envs=2, **settings)


def _own_batch():
    gym.registry["Strange-v0"].vector_entry_point = CountedBatch
    return es.PPO("none", "Strange-v0", num_envs=2)


def _unfit() -> Any:
    return es.load(ROOT / "pretrained" / "corridor-none.safetensors")


UNABLE = {
    "actions": lambda: es.PPO("none", Unsupported, num_envs=2),
    "actions of an id": lambda: _of_an_id(Unsupported),
    "actions of a single one": lambda: make_env(Unsupported),
    "actions of a batch": _own_batch,
    "the third": lambda: es.PPO("none", _one_less, num_envs=4),
    "the third in wraps": lambda: make_vec_env(_one_less, 4, ["episodes=2"]),
    "the spaces of the second": lambda: es.PPO("none", _other_spaces, num_envs=2),
    "evaluations on the way": lambda: es.PPO("none", Counted, num_envs=2, eval_every=10),
    "what reads them": lambda: es.PPO("none", Counted, num_envs=2, features_extractor_class=int),
    "what reads those of an id": lambda: _of_an_id(Counted, features_extractor_class=int),
    "a wrap": lambda: make_vec_env(Counted, 2, ["hide=77"]),
    "a policy to look at": lambda: es.show(_unfit(), Counted),
    "a policy to look at in an id": lambda: (_of_an_id(Counted).close(), es.show(_unfit(), "Strange-v0")),
    "an episode to look at": lambda: es.show(es.PPO("none", Stranger, num_envs=1), Counted, max_steps=3),
    "a policy to evaluate": lambda: es.evaluate(_unfit(), Counted, episodes=2),
}


@pytest.mark.parametrize("case", UNABLE)
def test_environments_are_closed_where_something_cannot_begin(case):
    Counted.opened, Counted.limit = 0, 99
    with pytest.raises((ValueError, TypeError, EndlessEpisode)) as caught:
        UNABLE[case]()
    del caught
    assert Counted.opened == 0


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_environment_that_exists_stays_open(wrapped):
    """It is its owner's."""
    Counted.opened, Counted.limit = 0, 99
    env = gym.wrappers.TimeLimit(Counted(), 5) if wrapped else Counted()
    for use in (lambda: es.show(_unfit(), env), lambda: es.evaluate(_unfit(), env, episodes=2)):
        with pytest.raises(ValueError, match="expected an environment with"):
            use()
    with pytest.raises((ValueError, TypeError)):
        es.PPO("none", env, num_envs=1, features_extractor_class=int)
    env.action_space = Unsupported.action_space
    with pytest.raises(ValueError, match="action space: expected Discrete"):
        es.PPO("none", env, num_envs=1)
    assert Counted.opened == 1


# Signals


def catches(process: subprocess.Popen, signum: int) -> bool:
    """Whether the process has a handler of the signal."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signum - 1) & 1)
    return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells by /proc whether the script has begun")
@pytest.mark.parametrize("script", ["train_rl.py", "evaluate.py", "visualize.py", "console"])
@pytest.mark.parametrize(("signum", "code", "message"), SIGNALS)
def test_a_signal_in_the_first_seconds_is_one_line(script, signum, code, message, tmp_path):
    """As soon as the script handles signals, and while it imports: no traceback, and nothing was written."""
    command = {
        "train_rl.py": [ROOT / "train_rl.py", "--env", "CartPole-v1"],
        "evaluate.py": [ROOT / "evaluate.py", ROOT / "pretrained" / "portal-gru.safetensors"],
        "visualize.py": [ROOT / "visualize.py", ROOT / "pretrained" / "portal-gru.safetensors"],
        "console": ["-c", "from expire_span_rl.cli.console import train; train()"],
    }[script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for delay in (0.0, 0.3):
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=tmp_path, env=environment, **pipes)
        began = time.monotonic()
        while not catches(process, signal.SIGTERM):
            assert process.poll() is None and time.monotonic() - began < 10
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signum)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (code, "", f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def sending(monkeypatch) -> Callable[..., None]:
    """Sends signals to this process in the midst of an update, in its n-th step of the environments."""

    def send(*signums: int, at_step: int) -> None:
        steps, step = 0, VectorPreviousActionReward.step

        def stepped(env, actions):
            nonlocal steps
            steps += 1
            if steps == at_step:
                for signum in signums:
                    os.kill(os.getpid(), signum)
            return step(env, actions)

        monkeypatch.setattr(VectorPreviousActionReward, "step", stepped)

    return send


def trained(folder: Path) -> dict[str, Tensor]:
    """The tensors of a run's checkpoint."""
    return load_checkpoint(folder / "checkpoint.safetensors")[0]


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("signum", "code", "message"), SIGNALS)
def test_a_signal_finishes_the_update_and_nothing_is_lost(
    signum, code, message, times, sending, tmp_path, monkeypatch, capsys
):
    """The run, resumed, ends with the weights of one that was not interrupted. It may come twice within a moment, as
    `timeout` sends it, to the process and to its group."""
    monkeypatch.chdir(tmp_path)
    flags = [*TRAIN, *SHORT, "--total-timesteps", "512"]
    assert call(train_rl, [*flags, "--run-dir", "whole"], monkeypatch) == 0
    with monkeypatch.context() as patch:
        sending(*[signum] * times, at_step=20)
        assert call(train_rl, [*flags, "--run-dir", "cut"], patch) == code
        monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"
    assert load_checkpoint("cut/checkpoint.safetensors")[1]["counters"]["timesteps"] == 256
    assert call(train_rl, ["--resume", "cut", "--no-progress-bar"], monkeypatch) == 0
    assert same(trained(Path("cut")), trained(Path("whole")))


def test_an_update_that_does_not_end_is_given_up_and_nothing_is_lost(sending, tmp_path, monkeypatch, capsys):
    """With no time left after the signal: the checkpoint is that of the last whole update, and the run goes on from
    there."""
    monkeypatch.chdir(tmp_path)
    flags = [*TRAIN, *SHORT, "--total-timesteps", "512"]
    assert call(train_rl, [*flags, "--run-dir", "whole"], monkeypatch) == 0
    monkeypatch.setattr(guard, "FINISH_WITHIN", -1.0)
    sending(signal.SIGTERM, at_step=20)
    assert call(train_rl, [*flags, "--run-dir", "cut"], monkeypatch) == 143
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint("cut/checkpoint.safetensors")[1]["counters"]["timesteps"] == 128
    assert call(train_rl, ["--resume", "cut", "--no-progress-bar"], monkeypatch) == 0
    assert same(trained(Path("cut")), trained(Path("whole")))


def test_a_second_signal_ends_at_once(sending, tmp_path, monkeypatch, capsys):
    """In the midst of the update, with what was saved before."""
    monkeypatch.chdir(tmp_path)
    sending(signal.SIGTERM, signal.SIGINT, at_step=20)
    assert call(train_rl, [*TRAIN, *SHORT, "--total-timesteps", "512", "--run-dir", "x"], monkeypatch) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted"
    assert load_checkpoint("x/checkpoint.safetensors")[1]["counters"]["timesteps"] in (0, 128)


def test_a_signal_that_is_ignored_stays_so(sending, tmp_path, monkeypatch):
    """As under nohup."""
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        sending(signal.SIGHUP, at_step=20)
        assert call(train_rl, [*TRAIN, *SHORT, "--total-timesteps", "256", "--run-dir", "x"], monkeypatch) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("code", "expected"), [("pass", 0), ("unblock()", -signal.SIGTERM)])
def test_blocked_signals_stay_away_from_children(code, expected):
    """A child that was started while they were blocked outlives them, unless it unblocks them."""
    program = (
        f"import os; from expire_span_rl.interrupts import unblock; {code}; os.kill(os.getpid(), {signal.SIGTERM:d})"
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with blocked():
        child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert child.wait(60) == expected


# Environments that fail


@pytest.mark.parametrize("error", ERRORS)
def test_an_environment_that_raises_costs_no_update(error, tmp_path, monkeypatch, capsys):
    """Exit code 1 and one line that names environment, index, step and error; the traceback is in run.log; the
    checkpoint is that of the last whole update, from which the run goes on."""
    monkeypatch.chdir(tmp_path)
    Stranger.fails = ERRORS[error]
    monkeypatch.setattr(sys.modules[__name__], "AT", 20)
    flags = [*TRAIN, "--env", "Strange-v0", "--total-timesteps", "384", "--run-dir", "x"]
    assert call(train_rl, flags, monkeypatch) == 1
    err = capsys.readouterr().err
    last = err.splitlines()[-1]
    assert last.startswith("error: Strange-v0, environment 1, episode 0 (seed 1000004), step 20: ") and error in last
    assert "Traceback" not in err
    text = Path("x/run.log").read_text()
    assert "Traceback" in text and "in step" in text and error in text
    assert load_checkpoint("x/checkpoint.safetensors")[1]["counters"]["timesteps"] == 128
    Stranger.fails = None
    assert call(train_rl, ["--resume", "x", "--no-progress-bar"], monkeypatch) == 0
    assert load_checkpoint("x/checkpoint.safetensors")[1]["counters"]["timesteps"] == 384


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_told_of_in_every_vectorisation(error, way):
    env = stranger(way)
    Stranger.fails = ERRORS[error]
    assert_names(failure(env), way, error)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", VALUES)
def test_bad_observations_are_named(kind, way):
    """Every kind of number that is not finite, other shapes and types."""
    value, message = VALUES[kind]
    env = stranger(way)
    Stranger.gives = (value,)
    assert_names(failure(env), way, message)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("value", "shown"), [(np.int64(99), "99"), (np.int64(-1), "-1"), (4, "4")])
def test_observations_outside_their_space_are_named(value, shown, way):
    env = stranger(way)
    Stranger.cue = value
    assert_names(failure(env), way, f"observation 'cue': expected numbers in its space Discrete(4), got {shown}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", REWARDS)
def test_bad_rewards_are_named(kind, way):
    if (kind, way) == ("text", "as a batch"):
        pytest.skip("NumPy reads the number in it")
    value, message = REWARDS[kind]
    env = stranger(way)
    Stranger.pays = value
    assert_names(failure(env), way, message)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("success", ["yes", 2, -0.5, float("nan"), np.array([True])])
def test_a_success_that_is_no_share_is_named(success, way):
    env = stranger(way)
    Stranger.says = {"is_success": success}
    assert_names(failure(env), way, "is_success: expected a flag or a number from 0 to 1, got")


@pytest.mark.parametrize("way", ["one by one", "as a batch"])
@pytest.mark.parametrize(
    "info", [{}, {"level": -1}, {"level": float("nan")}, {"level": float("inf")}, {"level": "easy"}]
)
def test_a_difficulty_that_cannot_be_ranked_is_named(info, way):
    Stranger.metadata = {"render_modes": [], "difficulty_key": "level"}
    env = stranger(way)
    Stranger.says = info
    what = "info of the last step: expected a number of at least 0 as 'level', which metadata['difficulty_key'] names"
    assert_names(failure(env), way, what)


@pytest.mark.parametrize("way", WAYS)
def test_shares_and_difficulties_are_counted(way):
    Stranger.metadata = {"render_modes": [], "difficulty_key": "level"}
    env = stranger(way)
    Stranger.says = {"is_success": np.float32(0.25), "level": np.int64(0)}
    for _ in range(AT):
        *_, infos = env.step(np.zeros(2, int))
    if way != "in wraps":  # which pass no infos on
        assert infos["final_info"]["is_success"][1] == 0.25 and infos["final_info"]["level"][1] == 0
    env.close()


def assert_names(message: str, way: str, what: str) -> None:
    """A batch of Gymnasium's own copies what it is given before we see it, so that it says less of some values."""
    if way != "as a batch":
        assert message.startswith(f"Strange-v0, environment 1, episode 0 (seed 8), step {AT}: ") and what in message
        return
    assert message.startswith("Strange-v0, ") and f"step {AT} after the reset: " in message
    if "environment 1" in message:
        assert what in message


def test_what_close_raises_is_only_told(monkeypatch):
    env = stranger("one by one")

    def close(self):
        raise OSError("no such window")

    monkeypatch.setattr(Stranger, "close", close)
    with pytest.warns(EnvironmentWarning, match="^Strange-v0, environment 0: close: OSError: no such window$"):
        env.close()


# Environments that hang


def catching_everything() -> None:
    """Hangs, and catches what an `except Exception` catches."""
    while True:
        with contextlib.suppress(Exception):
            time.sleep(5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hangs", [lambda: time.sleep(30), catching_everything, threading.Event().wait])
def test_an_environment_that_hangs_is_told_of(hangs, way):
    env = stranger(way, env_timeout=0.2)
    Stranger.hangs = hangs
    began = time.monotonic()
    assert_names(failure(env), way, "no answer within 0.2 s (--env-timeout)")
    assert time.monotonic() - began < 3
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_limit_is_of_one_call_and_only_where_it_can_be_set():
    """Two calls that are short enough are, however long together; in a thread there is no limit, and without one
    none."""
    for _ in range(3):
        assert call_within(0.3, lambda: time.sleep(0.15) or 7) == 7
    with pytest.raises(Overdue, match="within 0.05 s"):
        call_within(0.05, time.sleep, 5)
    assert call_within(0, lambda: 7) == 7
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(call_within(0.05, lambda: time.sleep(0.2) or 7)))
    thread.start()
    thread.join()
    assert answers == [7]


class Native(gym.Env):
    """Hangs in native code that no signal gets out of."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if action == 1:
            system, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            system.pthread_mutex_lock(lock)
            system.pthread_mutex_lock(lock)
        return np.zeros(1, np.float32), 0.0, False, False, {}


LATER = """
import time
import gymnasium as gym
import numpy as np

class Later(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    made = 0

    def __init__(self):
        Later.made += 1
        self.is_later = Later.made > 2
        if self.is_later and {refuses}:
            raise RuntimeError("no licence left")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {{}}

    def step(self, action):
        if self.is_later:
            time.sleep(30)
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.t == 5, False, {{}}

gym.register("Later-v0", Later)
"""
"""An environment of which only two are well: all that are made later hang, or cannot be made."""


@pytest.mark.parametrize("refuses", [False, True], ids=["hangs", "cannot be made"])
@pytest.mark.parametrize(
    "flags", [["--memory-image-every", "2"], ["--eval-every", "64"]], ids=["picture", "evaluation"]
)
def test_environments_beside_those_of_the_training_may_fail(flags, refuses, tmp_path, monkeypatch, capsys):
    """Without its picture a training goes on. Without an evaluation it ends, and is saved."""
    monkeypatch.chdir(tmp_path)
    file = Path(f"later_{flags[0].strip('-')[:4]}_{refuses}.py")  # a module has one name in a process
    file.write_text(LATER.format(refuses=refuses))
    sizes = ["--num-envs", "2", "--num-steps", "32", "--num-minibatches", "2", "--total-timesteps", "256"]
    run = ["--env", f"{file}:Later-v0", "--env-timeout", "0.3", "--run-dir", "x", "--no-progress-bar", *sizes]
    began = time.monotonic()
    code = call(train_rl, [*run, "--memory-image-every", "0", *flags], monkeypatch)
    errors = capsys.readouterr().err
    problem = "RuntimeError: no licence left" if refuses else "no answer within 0.3 s (--env-timeout)"
    assert time.monotonic() - began < 30 and problem in errors and "Traceback" not in errors
    steps = load_checkpoint("x/checkpoint.safetensors")[1]["counters"]["timesteps"]
    assert Path("x/policy.safetensors").exists()
    if "--eval-every" in flags:
        assert code == 1 and steps == 64 and errors.splitlines()[-1].startswith("error: ")
    else:
        assert code == 0 and steps == 256 and errors.count("no picture of what is remembered: ") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="locks a lock of this system twice")
def test_native_code_that_hangs_is_ended_in_a_process_of_its_own(monkeypatch):
    """Its episode ends truncated, and the process is started again."""
    from expire_span_rl.envs import gym_adapter

    monkeypatch.setattr(gym_adapter, "sample_action", lambda space: 0)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    env = make_vec_env(Native, 1, vectorization="async", env_timeout=0.2)
    env.reset(seed=0)
    try:
        began = time.monotonic()
        with pytest.warns(EnvironmentWarning, match=r"^Native, environment 0: no answer within 0\.2 s"):
            _, reward, terminated, truncated, _ = env.step(np.ones(1, int))
        assert time.monotonic() - began < 15 and (reward, terminated, truncated) == (0, False, True)
        env.step(np.zeros(1, int))
    finally:
        env.close()


def test_what_no_process_can_get_is_refused_only_where_processes_are_asked_for(monkeypatch):
    monkeypatch.setattr(Stranger, "lock", threading.Lock(), raising=False)

    class Local(Stranger):
        lock = threading.Lock()

    make_vec_env(Local, 2).close()
    with pytest.raises(
        EnvError, match=r"^environment: expected one that can be pickled, .* cannot pickle '_thread.lock' object"
    ):
        make_vec_env(Local, 2, vectorization="async")


# Numbers that are not finite


def trainer(agent: str = "ppo", env: str = "Corridor-v0", **settings: Any) -> Trainer:
    """Of Corridor-v0, which can save its state."""
    small = {
        "num_envs": 8,
        "num_steps": 16,
        "num_minibatches": 2,
        "width": 16,
        "total_timesteps": 1280,
        "device": "cpu",
    }
    kwargs = {"max_length": 6} if env == "Corridor-v0" else {}
    return build(resolve(agent=agent, env=env, env_kwargs=kwargs, **small, **settings)).trainer


def state(of: Trainer) -> dict[str, Any]:
    """A copy of the whole state of a training, as a flat dict."""
    tensors, figures = of.state()
    return {**{name: tensor.clone() for name, tensor in tensors.items()}, "figures": repr(figures)}


def assert_same_state(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        other = theirs[name]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name


def learned(of: Trainer) -> dict[str, Tensor]:
    """Weights and what the optimiser knows."""
    tensors, _ = of.state()
    parts = ("policy/", "agent/optimizer/")
    return {name: tensor.clone() for name, tensor in tensors.items() if name.startswith(parts)}


@pytest.mark.parametrize("agent", ["ppo", "impala"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_skipped(where, number, agent, monkeypatch):
    """Weights, statistics and the optimiser are as before; it is counted; the next one learns."""
    one = trainer(agent)
    one.update()
    before, parameter = learned(one), dict(one.policy.named_parameters())["value_head.weight"]
    with monkeypatch.context() as patch:
        if where == "gradient":
            hook = parameter.register_hook(lambda gradient: torch.full_like(gradient, number))
            name = "gradient of value_head.weight"
        else:
            patch.setattr(one.policy.actions, "entropy", lambda logits: logits.sum(-1) * number)
            name = "loss"
        with pytest.warns(
            SkippedUpdate, match=rf"^update 2 is skipped: {name}: expected finite numbers, got -?(nan|inf)$"
        ):
            figures = one.update()
        if where == "gradient":
            hook.remove()
    assert figures["train/skipped_updates"] == 1 and "train/value_loss" not in figures
    after = learned(one)
    assert all(torch.equal(before[name], after[name]) for name in before if "statistic" not in name)
    figures = one.update()
    assert figures["train/skipped_updates"] == 1 and figures["train/value_loss"] >= 0
    assert one.skipped_in_a_row == 0 and not same(before, learned(one))
    one.close()


@pytest.mark.parametrize("agent", ["ppo", "impala", "sb3-ppo"])
def test_weights_that_blow_up_are_never_kept(agent, tmp_path, monkeypatch, capsys):
    """A learning rate of 1e30: after ten updates in a row one line names the first tensor, exit code 1; no file has
    more than what the training began with."""
    monkeypatch.chdir(tmp_path)
    flags = [*TRAIN, *SHORT, "--agent", agent, "--learning-rate", "1e30", "--run-dir", "x"]
    flags += ["--num-steps", "64", "--total-timesteps", "16384"]  # so that every rollout has rewards
    if agent == "sb3-ppo":
        at = flags.index("--num-minibatches")
        flags[at : at + 2] = ["--batch-size", "32"]
        at = flags.index(FORGETFUL[0])
        del flags[at : at + len(FORGETFUL)]
    assert call(train_rl, flags, monkeypatch) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"error: {MOST_SKIPPED} updates in a row were not finite and were skipped, the last for its weight "
    )
    assert last.endswith(": a lower --learning-rate may help")
    files = [
        Path("x/checkpoint.safetensors"),
        Path("x/policy.safetensors"),
        *Path("x/checkpoints").glob("*.safetensors"),
    ]
    from safetensors.torch import load_file

    for file in files:
        for name, tensor in load_file(file).items():
            if name.endswith("variance") and (tensor == HUGE_VARIANCE).all():
                continue  # of the previous reward, as the training began
            if tensor.is_floating_point() and "memory" not in name:
                assert torch.isfinite(tensor).all() and tensor.abs().max() < 1e6, (file, name)


def test_weights_just_beyond_the_limit_are_named():
    module = torch.nn.Linear(2, 2)
    guard.check_modules({"policy": module})
    with torch.no_grad():
        module.bias[1] = 2 * LARGEST_WEIGHT
    with pytest.raises(NotFinite, match=r"^weight bias: expected numbers up to 1e\+09, got 2e\+09$"):
        guard.check_modules({"policy": module})
    module.register_buffer("mean", torch.tensor([1e30, float("nan")]))
    with torch.no_grad():
        module.bias[1] = 0
    with pytest.raises(NotFinite, match=r"^statistic mean: "):
        guard.check_modules({"policy": module})


@pytest.mark.parametrize("stage", ["collect", "step", "check", "learn", "second minibatch", "observe", "figures"])
def test_an_update_happens_as_a_whole_or_not_at_all(stage, monkeypatch):
    """Whatever is raised wherever: the state is that before, and the next update is what it would have been."""
    one, other = trainer(), trainer()
    for _ in range(2):
        one.update(), other.update()
    before = state(one)
    count = 0

    def failing(real: Callable[..., Any], at: int = 1) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise OddBase(stage)
            return real(*args, **kwargs)

        return call

    target: tuple[Any, str, int] = {
        "collect": (one.collector, "collect", 1),
        "step": (one.policy, "step", 7),
        "check": (one, "_check_due", 1),
        "learn": (one.agent, "update", 1),
        "second minibatch": (one.agent, "_descend", 2),
        "observe": (one.policy, "observe", 1),
        "figures": (one.policy, "memory_metrics", 1),
    }[stage]
    with monkeypatch.context() as patch:
        patch.setattr(target[0], target[1], failing(getattr(target[0], target[1]), target[2]))
        with pytest.raises(OddBase, match=stage):
            one.update()
    assert_same_state(state(one), before)
    one.update(), other.update()
    assert_same_state(state(one), state(other))
    one.close(), other.close()


def test_an_observation_too_large_for_the_policy_is_named(monkeypatch):
    """Finite, but no output is: which environment and which part of its observation."""
    one = trainer(env="Strange-v0", normalize_observations=False)
    Stranger.gives = (np.full(2, 3e38, np.float32),)
    message = r"^the policy's outputs are not finite in environment 1: its observation 'seen' has numbers up to 3e\+38$"
    with pytest.raises(TrainingEnded, match=message):
        one.update()
    one.close()


@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_acting_is_compared_with_learning_relative_to_size(scale):
    """Rounding of values of 1e5 is no difference; a difference of a hundredth of them is."""
    one = trainer()
    torch.manual_seed(0)
    torch.nn.init.normal_(one.policy.value_head.weight, std=scale)
    one.collector.collect()
    rollout, _ = one.collector.collect()
    assert float(rollout.values.abs().max()) > scale
    assert 0 < acting_learning_difference(one.policy, rollout) < 1e-5
    wrong = rollout.values.abs().max().clamp(min=1) * 0.02
    rollout.values[0, 0] += wrong
    assert acting_learning_difference(one.policy, rollout) > 0.01
    one.close()


def test_outputs_that_are_not_finite_are_told_where_observations_are_flags():
    observation = {"flags": torch.tensor([[True], [False]])}
    with pytest.raises(
        TrainingEnded, match=r"^the policy's outputs are not finite in environment 1: its observation 'flags'"
    ):
        check_outputs(observation, torch.zeros(2, 3), torch.tensor([0.0, math.nan]))


def test_an_episode_that_does_not_end_is_told_by_another_process():
    error = pickle.loads(pickle.dumps(EndlessEpisode("the problem", "the advice")))
    assert (str(error), error.problem) == ("the problem; the advice", "the problem")
