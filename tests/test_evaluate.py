"""evaluate.py as a user calls it, good and bad: the report, its figures, exit codes, one-line errors."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import VectorWrapper
from script_cases import ROOT, SHORT, SMALL, call, log

import evaluate
import train_rl
from expire_span_rl import envs, evaluation, files, reporting, spaces
from expire_span_rl.building import environment_seed
from expire_span_rl.evaluation_metrics import fill_missing_success, wilson
from expire_span_rl.interrupts import Interrupted
from expire_span_rl.policies import ActorCritic, load_policy, save_policy
from expire_span_rl.reporting import policy_names


def test_evaluate_writes_the_report_and_the_plot(run_dir, in_folder, monkeypatch, capsys):
    arguments = [
        run_dir,
        run_dir / "checkpoints" / "policy_000000512.safetensors",
        "--episodes",
        "30",
        "--torch-threads",
        "1",
    ]
    assert call(evaluate, [*arguments, "--json", "out.json", "--plot", "out.png"], monkeypatch) == 0
    report = json.loads(Path("out.json").read_text())
    assert set(report) == {"env", "env_kwargs", "seed", "num_envs", "deterministic", "policies"}
    assert (report["seed"], report["num_envs"], report["deterministic"]) == (0, 30, True)  # no more than episodes
    assert report["env"] == "Corridor-v0" and report["env_kwargs"] == {"max_length": 6}
    keys = {"path", "memory", "agent", "parameters", "episodes", "success_rate", "success_rate_ci95", "mean_return"}
    keys |= {"mean_episode_length", "live_memories_mean", "live_memories_max", "memory_bytes"}
    keys |= {"memory_efficiency"}
    for policy in report["policies"]:
        assert keys | {"acting_steps_per_second", "buckets"} <= set(policy)
        assert policy["episodes"] == 30 == sum(b["episodes"] for b in policy["buckets"])
        assert policy["success_rate"] == policy["mean_return"]
        assert policy["memory_efficiency"] is None  # Corridor has no oracle
        low, high = policy["success_rate_ci95"]
        assert 0 <= low <= policy["success_rate"] <= high <= 1
        assert len(policy["live_memories_mean"]) == 2
    assert Path("out.png").stat().st_size > 10_000
    assert "success" in capsys.readouterr().out


def test_a_plots_ending_may_be_in_capitals(run_dir, in_folder, monkeypatch):
    """Its name may have characters that Matplotlib's font lacks."""
    Path("\u6c34.safetensors").write_bytes((run_dir / "policy.safetensors").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arguments = ["\u6c34.safetensors", "--episodes", "3", "--plot", "out.PNG"]
        assert call(evaluate, arguments, monkeypatch) == 0
    assert Path("out.PNG").read_bytes().startswith(b"\x89PNG")


def test_each_environment_plays_as_it_would_alone(run_dir, monkeypatch):
    """Environment i has the i-th seed, whoever else is in the batch."""
    policy, first = load_policy(run_dir)[0], evaluation.FIRST_SEED
    together = evaluation.evaluate(policy, "Corridor-v0", {"max_length": 6}, 12, num_envs=20)
    apart = []
    for i in range(12):
        monkeypatch.setattr(evaluation, "FIRST_SEED", first + i)
        apart.append(evaluation.evaluate(policy, "Corridor-v0", {"max_length": 6}, 1))
    assert len({one["mean_episode_length"] for one in apart}) > 1
    for key in ("success_rate", "mean_episode_length", "live_memories_per_episode", "live_memories_at_end"):
        assert together[key] == pytest.approx(sum(one[key] for one in apart) / 12)
    assert together["live_memories_max"] == [max(layer) for layer in zip(*(one["live_memories_max"] for one in apart))]


class _Loses(VectorWrapper):
    """The first episode of environment 0 ends unfinished, as with a process that died."""

    is_lost = False

    def step(self, actions):
        *outcome, infos = self.env.step(actions)
        if not self.is_lost and infos.get("_final_obs", [False])[0]:
            self.is_lost = True
            mark = np.arange(self.num_envs) == 0
            infos["final_info"] |= {spaces.EPISODE_LOST: mark, f"_{spaces.EPISODE_LOST}": mark}
            infos["final_info"]["is_success"] = np.where(mark, False, infos["final_info"]["is_success"])
        return *outcome, infos


def test_an_episode_that_is_lost_with_its_process_counts_nowhere():
    """Its environment plays another one in its place."""
    policy, _ = load_policy(ROOT / "pretrained/corridor-expire_span.safetensors")
    counted = []
    vector = _Loses(envs.make_vec_env("Corridor-v0", 2, max_length=6))
    protocol = evaluation.Protocol(4, 0, True, 1000)
    result = evaluation.evaluate_in(policy, vector, "Corridor-v0", protocol, progress=counted.append)
    assert vector.is_lost and len(counted) == result["episodes"] == 4
    assert result["success_rate"] == 1


def test_streams_that_ask_nothing_say_nothing_of_success():
    """Silence is wrong wherever something is asked. Streams that ask nothing must not count as right, nor as wrong."""
    env = envs.make_vec_env("Collision-v0", 1)
    policy = ActorCritic.for_spaces(env.single_observation_space, env.single_action_space, memory="none")
    with torch.no_grad():
        policy.policy_head.weight.zero_()
        policy.policy_head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0]))
    kwargs = {"stream_length": 40, "min_stream_length": 1, "grid": 4, "colours": 2}
    for vectorization in ("sync", "auto"):
        kwargs["vectorization"] = vectorization
        result = evaluation.evaluate(policy, "Collision-v0", kwargs, 60, num_envs=20)
        count = result["episodes_with_success"]
        assert count < 60 == result["episodes"] and result["success_rate"] == 0
        assert result["success_rate_ci95"] == list(wilson(0, count))
        assert sum(bucket.get("episodes_with_success", bucket["episodes"]) for bucket in result["buckets"]) == count
    policy.policy_head.bias.data = torch.tensor([9.0, 0.0, 0.0, 0.0, 0.0])
    result = evaluation.evaluate(policy, "Collision-v0", {**kwargs, "question_share": 0.02}, 60, num_envs=20)
    assert result["buckets"][0]["success_rate"] is None and result["success_rate"] > 0
    fill_missing_success([result])
    assert result["buckets"][0]["success_rate"] is None
    named = {**result, "path": "a", "memory": "none"}
    assert reporting.plot({"env": "Collision-v0", "policies": [named]}, "svg").startswith(b"<?xml")
    text = io.StringIO()
    reporting.print_tables({"env": "Collision-v0", "env_kwargs": {}, "policies": [named]}, text)
    words = " ".join(text.getvalue().replace("│", " ").split())
    assert f"] of {result['episodes_with_success']}" in words and "with success" not in words


def test_the_memories_of_an_episode_that_is_lost_count_nowhere():
    """A window longer than every episode: in n steps there are 1 to n live memories. The first of three episodes, which
    is lost, is the longest."""
    policy, _ = load_policy(ROOT / "pretrained/corridor-transformer_xl.safetensors")
    for seed in range(40):
        lengths = []
        vector = _Loses(envs.make_vec_env("Corridor-v0", 1, max_length=30))
        original = vector.step

        def step(actions, original=original, lengths=lengths):
            outcome = original(actions)
            lengths.append(bool(outcome[2][0] or outcome[3][0]))
            return outcome

        vector.step = step
        result = evaluation.evaluate_in(policy, vector, "Corridor-v0", evaluation.Protocol(2, seed, True, 1000))
        ends = np.flatnonzero(lengths) + 1
        lost, *counted = np.diff(ends, prepend=0).tolist()
        if lost > max(counted):
            break
    assert result["live_memories_max"] == [max(counted)] * 2
    mean = sum(n * (n + 1) / 2 for n in counted) / sum(counted)
    assert result["live_memories_mean"] == pytest.approx([mean] * 2)
    assert result["held_at_end"] == pytest.approx([sum((n - 1) / n for n in counted) / len(counted)] * 2)


def test_every_environment_plays_its_share():
    """Of 11 episodes in 4 environments 3, 3, 3 and 2, so that those who play short ones do not play more of them."""
    policy, _ = load_policy(ROOT / "pretrained/corridor-none.safetensors")
    steps = []
    for i, episodes in enumerate((3, 3, 3, 2)):
        env = envs.make_vec_env("Corridor-v0", 1, max_length=30)
        observation, _ = env.reset(seed=evaluation.FIRST_SEED + i)
        steps.append([0])
        while len(steps[-1]) <= episodes:
            steps[-1][-1] += 1
            observation, _, terminated, truncated, _ = env.step(policy.predict(observation, deterministic=True)[0])
            steps[-1] += [0] * int(terminated[0] | truncated[0])
    result = evaluation.evaluate(policy, "Corridor-v0", {"max_length": 30}, 11, num_envs=4)
    assert result["mean_episode_length"] == pytest.approx(sum(map(sum, steps)) / 11)


def test_memory_efficiency_is_all_oracles_steps_by_all_of_the_agents():
    """Over episodes of unlike rooms, some of which fail and are counted at the step limit."""
    policy, _ = load_policy(ROOT / "pretrained/portal-gru.safetensors")
    oracles, agents, failures = 0.0, 0, 0
    for i in range(24):
        env = envs.make_env("Portal-v0", max_rooms=4)
        observation, _ = env.reset(seed=evaluation.FIRST_SEED + i)
        state, start, over, steps = None, True, False, 0
        while not over:
            batch = {name: part[None] for name, part in observation.items()}
            action, state = policy.predict(batch, state, np.array([start]), deterministic=True)
            observation, _, terminated, truncated, info = env.step(action[0])
            start, over, steps = False, terminated or truncated, steps + 1
        oracle = 3 * (info["rooms"] + info["rooms"] * (info["rooms"] + 1) / 4)
        oracles, agents = oracles + oracle, agents + (steps if terminated else math.ceil(4 * oracle))
        failures += truncated
    assert 0 < failures < 24
    result = evaluation.evaluate(policy, "Portal-v0", {"max_rooms": 4}, 24, num_envs=24)
    assert result["memory_efficiency"] == pytest.approx(oracles / agents)
    assert result["success_rate"] == (24 - failures) / 24


def test_a_policys_drawn_actions_do_not_depend_on_who_is_evaluated_before_it(in_folder, monkeypatch):
    path = ROOT / "pretrained/corridor-none.safetensors"
    arguments = ["--episodes", "20", "--stochastic", "--torch-threads", "1", "--json", "out.json"]
    lengths = []
    for paths in ([path], [path, path]):
        assert call(evaluate, [*paths, *arguments], monkeypatch) == 0
        lengths += [p["mean_episode_length"] for p in json.loads(Path("out.json").read_text())["policies"]]
    assert len(lengths) == 3 and len(set(lengths)) == 1
    assert json.loads(Path("out.json").read_text())["deterministic"] is False  # two runs of a seed may differ in this


def test_trainings_and_evaluations_share_no_seed():
    """Each has a million of its own, whatever --seed says."""
    seeds = [0, 1, 7, 998_999, 999_000, 999_997, 999_998, 1_002_144, 20_261_125, 2**31 - 1]
    training = [environment_seed(seed) for seed in seeds]
    evaluating = [evaluation.FIRST_SEED + seed * 1_000_003 for seed in seeds]
    ordered = sorted(training + evaluating)
    assert min(b - a for a, b in itertools.pairwise(ordered)) >= 1_000_003 - 9 and ordered[-1] < 2**63
    assert set(training[:4]) == {0, 1_000_003, 7_000_021, 998_999 * 1_000_003}


@pytest.mark.parametrize("episodes", [3, 40])
def test_bytes_are_those_of_the_memories_that_were_live(episodes):
    """Without forgetting a corridor of 5 tiles has 1 to 5 live on its way, 3 on average, however often it is walked."""
    policy, _ = load_policy(ROOT / "pretrained/corridor-transformer_xl.safetensors")
    result = evaluation.evaluate(policy, "Corridor-v0", {"min_length": 5, "max_length": 5}, episodes)
    assert result["live_memories_mean"] == [3, 3]
    hidden, birth, alive = 4 * policy.config.core.width, 4, 1
    assert result["memory_bytes"] == 2 * 3 * (hidden + birth + alive)


class TellsSometimes(gym.Env):
    """Says `is_success` of every second episode: of the first, in which it is checked, and not of the one after it."""

    observation_space, action_space = gym.spaces.Box(0, 1, (2,)), gym.spaces.Discrete(2)
    episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action):
        self.episodes += 1
        info = {"is_success": True} if self.episodes % 2 == 1 else {}
        return self.observation_space.low, 1.0, True, False, info


def test_an_environment_that_tells_of_success_now_and_then(in_folder, monkeypatch):
    gym.register("TellsSometimes-v0", entry_point=TellsSometimes)
    try:
        run = [*SMALL, "--env", "TellsSometimes-v0", "--memory", "none", "--run-dir", "x", "--total-timesteps", "256"]
        assert call(train_rl, run, monkeypatch) == 0
        silent = evaluation.evaluate(load_policy("x")[0], "TellsSometimes-v0", {}, 1)
        assert silent["success_rate"] is None  # it has told nothing yet
        assert float(log(Path("x"))[-1]["rollout/success_rate"]) == 0.5
        assert call(evaluate, ["x", "--episodes", "4", "--num-envs", "1", "--json", "e.json"], monkeypatch) == 0
        assert json.loads(Path("e.json").read_text())["policies"][0]["success_rate"] == 0.5
    finally:
        del gym.registry["TellsSometimes-v0"]


def test_evaluation_reports_the_figures_that_an_environment_names(in_folder, monkeypatch, capsys):
    """Failures are counted at the step limit, sums are divided; what did not occur is null."""
    run = [*SMALL, "--total-timesteps", "128", "--memory", "none", "--env"]
    portal, switch = {"min_rooms": 2, "max_rooms": 2, "max_steps": 4}, {"max_hold": 1, "passage_length": 2}
    told = {}
    for env, kwargs in (("Portal-v0", portal), ("Switch-v0", {**switch, "max_steps": 40})):
        assert call(train_rl, [*run, env, "--env-kwargs", json.dumps(kwargs), "--run-dir", env], monkeypatch) == 0
        arguments = [env, "--episodes", "20", "--stochastic", "--torch-threads", "1", "--json", "out.json"]
        assert call(evaluate, arguments, monkeypatch) == 0
        told[env] = json.loads(Path("out.json").read_text())["policies"][0]
    assert told["Portal-v0"]["memory_efficiency"] == 3 * (2 + 2 * 3 / 4) / 4
    assert told["Portal-v0"]["buckets"][0]["memory_efficiency"] == 3 * (2 + 2 * 3 / 4) / 4
    assert "memory efficiency:  all: 2.625" in capsys.readouterr().out
    shares = told["Switch-v0"]["correct_share_by_signals"]
    assert list(shares) == ["1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65+"]
    assert 0 <= shares["1"] <= 1 and shares["33-64"] is None and told["Switch-v0"]["memory_efficiency"] is None
    assert min(v for v in shares.values() if v is not None) <= told["Switch-v0"]["correct_share"]


def test_wraps_travel_with_the_policy_until_others_are_asked_for(in_folder, monkeypatch):
    wraps = ["--wrap", "stretch=1", "--wrap", "episodes=2"]
    assert call(train_rl, [*SMALL, *SHORT, *wraps, "--total-timesteps", "128", "--run-dir", "x"], monkeypatch) == 0
    assert call(train_rl, ["--resume", "x", "--no-progress-bar"], monkeypatch) == 0
    lengths = []
    for given, expected in (
        ([], ["stretch=1", "episodes=2"]),
        (["--wrap", "stretch=3"], ["stretch=3"]),
        (["--wrap", "none"], ["none"]),
    ):
        arguments = ["x", "--episodes", "8", "--stochastic", "--torch-threads", "1", "--json", "out.json", *given]
        assert call(evaluate, arguments, monkeypatch) == 0
        report = json.loads(Path("out.json").read_text())
        assert report["env_kwargs"] == {"max_length": 6, "wraps": expected}
        lengths.append(report["policies"][0]["mean_episode_length"])
    assert lengths[2] < lengths[1]


def test_wilson_interval_known_values():
    """Newcombe, 1998, table I: 81 of 263 and 0 of 20."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


class EndsForOthers(gym.Env):
    """Episodes of one step, but for policies whose first action is 1: theirs do not end."""

    observation_space, action_space = gym.spaces.Box(0, 1, (2,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action):
        return self.observation_space.low, 1.0, int(action) == 0, False, {}


@pytest.fixture
def policies_of_which_the_last_has_no_end(in_folder):
    """Two that act 0, and one that acts 1."""
    gym.register("EndsForOthers-v0", entry_point=EndsForOthers)
    env = envs.make_env("EndsForOthers-v0")
    for name, action in (("a", 0), ("b", 0), ("c", 1)):
        policy = ActorCritic.for_spaces(env.observation_space, env.action_space, memory="none")
        with torch.no_grad():
            policy.policy_head.bias[action] = 100.0
        save_policy(policy, f"{name}.safetensors", {"env": "EndsForOthers-v0", "env_kwargs": {}, "agent": "ppo"})
    yield ["a.safetensors", "b.safetensors", "c.safetensors"]
    del gym.registry["EndsForOthers-v0"]


def test_what_is_finished_is_reported_when_another_policy_has_no_end(
    policies_of_which_the_last_has_no_end, monkeypatch, capsys
):
    quick = ["--episodes", "4", "--max-steps", "20", "--json", "out.json", "--plot", "out.png"]
    assert call(evaluate, [*policies_of_which_the_last_has_no_end, *quick], monkeypatch) == 1
    said = capsys.readouterr()
    assert said.err.startswith("stopped: what follows is of the first 2 of 3 policies\nerror: EndsForOthers-v0, envir")
    report = json.loads(Path("out.json").read_text())
    assert [policy["path"] for policy in report["policies"]] == ["a.safetensors", "b.safetensors"] and report["stopped"]
    assert report["policies"][1]["mean_return"] == 1 and Path("out.png").exists() and "b.safetensors" in said.out
    assert call(evaluate, ["c.safetensors", *quick[:4], "--json", "none.json"], monkeypatch) == 1
    assert not Path("none.json").exists()


def test_a_complete_result_outlasts_a_command_that_stops(policies_of_which_the_last_has_no_end, monkeypatch, capsys):
    """Only an empty file, or none, takes what is finished."""
    quick = ["--episodes", "4", "--max-steps", "20", "--json", "out.json", "--plot"]
    first, second, endless = policies_of_which_the_last_has_no_end
    assert call(evaluate, [first, second, *quick, "out.png"], monkeypatch) == 0
    before = Path("out.json").read_bytes(), Path("out.png").read_bytes()
    assert "stopped" not in json.loads(before[0])
    Path("new.png").touch()
    capsys.readouterr()
    for plot, line in (("out.png", "out.json, out.png stay as they were"), ("new.png", "out.json stays as it was")):
        assert call(evaluate, [first, endless, *quick, plot], monkeypatch) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"stopped: what follows is of the first 1 of 2 policies; {line}\nerror: ")
        assert (Path("out.json").read_bytes(), Path("out.png").read_bytes()) == before and "results:" not in said.out
    assert Path("new.png").stat().st_size and "plot: new.png" in said.out


def test_what_is_finished_is_reported_after_ctrl_c(policies_of_which_the_last_has_no_end, monkeypatch, capsys):
    evaluate_in, counts = evaluation.evaluate_in, itertools.count()

    def interrupt(*arguments, **options):
        if next(counts) == 1:
            raise Interrupted
        return evaluate_in(*arguments, **options)

    monkeypatch.setattr(evaluation, "evaluate_in", interrupt)
    arguments = [*policies_of_which_the_last_has_no_end, "--episodes", "4", "--json", "out.json"]
    assert call(evaluate, arguments, monkeypatch) == 130
    assert len(json.loads(Path("out.json").read_text())["policies"]) == 1
    assert "of the first 1 of 3 policies\nerror: interrupted" in capsys.readouterr().err


def test_results_on_stdout_are_alone_there(run_dir):
    command = [sys.executable, str(ROOT / "evaluate.py"), str(run_dir), "--episodes", "4", "--json", "/dev/stdout"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["policies"][0]["episodes"] == 4
    assert "success [95%]" in done.stderr and "results: /dev/stdout" in done.stderr


def test_stdout_has_other_names(tmp_path, monkeypatch):
    """By its descriptor, by a link to the pipe, or by another process's name of it. Not a file, nor another pipe."""
    (_, other), (_, out) = os.pipe(), os.pipe()
    monkeypatch.setattr(files, "STDOUT", out)
    (tmp_path / "link").symlink_to(f"/proc/{os.getpid()}/fd/{out}")
    (tmp_path / "file").touch()
    assert all(files.is_stdout(path) for path in (f"/dev/fd/{out}", f"/proc/{os.getpid()}/fd/{out}", tmp_path / "link"))
    for path in (f"/proc/{os.getpid()}/fd/{other}", tmp_path / "file", tmp_path / "nothing", tmp_path):
        assert not files.is_stdout(path)


def test_a_plot_names_each_policy_by_its_own_name(tmp_path, monkeypatch):
    """Names of runs have dots. Folders tell policies of one name apart; the same policy twice has a number."""
    monkeypatch.chdir(tmp_path)
    assert policy_names(["runs/lr0.001", "runs/lr0.01", "a.safetensors"]) == ["lr0.001", "lr0.01", "a"]
    assert policy_names(["."]) == [tmp_path.name]
    two = policy_names(["x/a/policy.safetensors", "x/b/policy.safetensors"])
    assert two == ["a/policy", "b/policy"]
    assert policy_names(["a", "a/", "a.safetensors"]) == ["a", "a, 2", "a, 3"]
    three = policy_names(["runs/x", "runs/x.safetensors", "old/x.safetensors"])
    assert three == ["runs/x", "runs/x, 2", "old/x"]
    assert policy_names(["a", "a", "a, 2"]) == ["a", "a, 3", "a, 2"]


def _foreign(path: Path) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"a": zeros(2)}, path)


BAD_EVALUATION = {
    "no policy": ([], "policies: expected "),
    "missing": (["gone.safetensors"], "found nothing there"),
    "no name": ([""], "policies: expected the name of a file or a folder, got ''"),
    "no name of a file": (["RUN", "--json="], "--json: expected the name of a file or a folder, got ''"),
    "truncated": (["short.safetensors"], "expected a whole safetensors file"),
    "foreign": (["foreign.safetensors"], "got another safetensors file"),
    "empty folder": (["folder"], "which it does not have"),
    "no episodes": (["RUN", "--episodes", "0"], "--episodes: expected at least 1"),
    "plot name": (["RUN", "--plot", "x.txt"], "--plot: expected a name that ends in"),
    "no GPU": (["RUN", "--device", "tpu"], "--device: expected"),
    "a folder": (["RUN", "--json", "folder"], "--json: expected a file, 'folder' is a folder"),
    "of no environment": (["nowhere.safetensors"], "--env: expected an environment id"),
    "no such folder": (["RUN", "--json", "gone/x.json"], "--json: expected a folder that exists"),
    "other spaces": (["RUN", "--env", "CartPole-v1"], "expected an environment with observation"),
    "bad wrap": (["RUN", "--wrap", "stretch=much"], "wrap stretch: expected a whole number of steps"),
    "wraps in two places": (
        ["RUN", "--wrap", "stretch=2", "--env-kwargs", '{"wraps": ["episodes=2"]}'],
        '--wrap: expected wraps here or as "wraps" in --env-kwargs, got both',
    ),
    "keyword of a flag": (["RUN", "--env-kwargs", '{"num_envs": 4}'], "got 'num_envs', which --num-envs sets"),
    "keyword of no flag": (["RUN", "--env-kwargs", '{"env_timeout": 4}'], "'env_timeout', which is the toolkit's"),
    "bad keyword": (["RUN", "--env-kwargs", '{"size": 3}'], "unknown Corridor-v0 keyword 'size'"),
}


@pytest.mark.parametrize("case", BAD_EVALUATION)
def test_bad_evaluation_input_is_told_in_one_line(case, run_dir, in_folder, monkeypatch, capsys):
    whole = (run_dir / "policy.safetensors").read_bytes()
    Path("short.safetensors").write_bytes(whole[: len(whole) // 2])
    _foreign(Path("foreign.safetensors"))
    Path("folder").mkdir()
    save_policy(load_policy(run_dir)[0], Path("nowhere.safetensors"), {})
    arguments, told = BAD_EVALUATION[case]
    arguments = [str(run_dir) if a == "RUN" else a for a in arguments]
    assert call(evaluate, arguments, monkeypatch) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("task, choices", [("Copy-v0", 11), ("Text-v0", 256), ("Collision-v0", 5)])
def test_bits_are_those_of_the_right_actions(task, choices):
    """Of a policy that finds all actions alike, and of one that prefers one action: whatever it does, the right ones
    count, and only where they matter."""
    lengths = {"Copy-v0": {"delay": 5}, "Text-v0": {"stream_length": 60}, "Collision-v0": {"grid": 4, "colours": 2}}
    settings = lengths[task]
    env = envs.make_vec_env(task, 3, **settings)
    policy = ActorCritic.for_spaces(env.single_observation_space, env.single_action_space, memory="none")
    with torch.no_grad():
        policy.policy_head.weight.zero_()
        policy.policy_head.bias.zero_()
    alike = evaluation.evaluate(policy, task, settings, 6, num_envs=4)
    assert alike["bits"] == pytest.approx(math.log2(choices)) == alike["buckets"][-1]["bits"]
    preferred = 32 if task == "Text-v0" else 2
    with torch.no_grad():
        policy.policy_head.bias[preferred] = 1.0
    found = evaluation.evaluate(policy, task, settings, 6, num_envs=4)
    total = math.log2(choices - 1 + math.e)
    expected = total - found["accuracy"] * math.log2(math.e)  # the preferred action is taken, so that it is right
    assert found["bits"] == pytest.approx(expected) and 0 < found["accuracy"] < 0.6
