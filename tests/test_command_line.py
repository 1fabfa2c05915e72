"""The command line as a user calls it, good and bad: files, exit codes, one-line errors, nothing lost."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cli
import evaluate
import train_rl
import visualize
from policies import load_policy, save_policy

ROOT = Path(__file__).parents[1]
SMALL = ["--num-envs", "8", "--num-steps", "16", "--num-minibatches", "2", "--torch-threads", "1", "--no-progress-bar"]
SHORT = ["--env-kwargs", '{"max_length": 6}']


def call(module, arguments, monkeypatch) -> int:
    """The exit code of a script's command line, in this process."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.run(module.main)
    return int(stop.value.code or 0)


def log(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A short run, trained by the command line in a process of its own."""
    folder = tmp_path_factory.mktemp("run") / "x"
    command = [
        sys.executable,
        str(ROOT / "train_rl.py"),
        *SMALL,
        *SHORT,
        "--total-timesteps",
        "1000",
        "--run-dir",
        str(folder),
    ]
    done = subprocess.run(
        [*command, "--checkpoint-every", "512"], capture_output=True, text=True, check=False, cwd=folder.parent
    )
    assert done.returncode == 0, done.stderr
    assert "rounded up from 1,000 to 1,024" in done.stderr
    return folder


@pytest.mark.parametrize("agent", ["ppo", "impala"])
@pytest.mark.parametrize("memory", ["expire_span", "gru"])
def test_defaults_are_those_that_the_environment_needs(memory, agent):
    """Where the memory kind has such a flag; what the user says counts."""
    asked = ["--memory", memory, "--agent", agent]
    usual, tuned = (train_rl.parse_config([*asked, "--env", env]) for env in ("Corridor-v0", "Portal-v0"))
    given = train_rl.TUNED["Portal-v0", agent]
    assert memory == "gru" or given.keys() <= tuned.keys()
    for name in usual.keys() - {"env", "training_kwargs"}:
        assert tuned[name] == given.get(name, usual[name])
    said = train_rl.parse_config([*asked, "--env", "Portal-v0", "--learning-rate", "0.5", "--final-ent-coef", "0"])
    assert said == {**tuned, "learning_rate": 0.5, "final_ent_coef": 0.0}


@pytest.mark.parametrize("length, scale", [(100, 1.0), (1000, 0.2)])
def test_the_entropy_bonus_is_the_environments_unless_it_is_said(length, scale):
    flags = ["--env-kwargs", json.dumps({"max_length": length}), "--final-ent-coef", "0.5", *SMALL]
    config = train_rl.build(train_rl.parse_config(flags)).trainer.agent.config
    assert (config.ent_coef, config.final_ent_coef) == (pytest.approx(0.01 * scale), 0.5)


def test_a_run_directory_holds_config_log_events_checkpoints_and_policy(run_dir):
    config = json.loads((run_dir / "config.json").read_text())
    assert config["memory"] == "expire_span" and config["num_steps"] == 16
    rows = log(run_dir)
    assert [int(float(row["time/total_timesteps"])) for row in rows] == list(range(128, 1025, 128))
    events = EventAccumulator(str(run_dir))
    events.Reload()
    wanted = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/success_rate", "time/fps", "memory/live_mean"}
    wanted |= {"memory/live_max", "memory/span_mean/layer_0", "memory/span_mean/layer_1", "memory/pressure"}
    wanted |= {"time/rollout_seconds", "time/update_seconds", "train/approx_kl", "train/acting_learning_difference"}
    assert wanted <= set(events.Tags()["scalars"])
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == [
        "policy_000000512.safetensors",
        "policy_000001024.safetensors",
    ]
    assert (run_dir / "policy.safetensors").is_file()


def test_resume_continues_to_what_an_uninterrupted_run_reaches(in_folder, monkeypatch):
    """Weights, log and timesteps: 1,024 steps at once, or 512 and then the rest."""
    common = [*SMALL, *SHORT, "--total-timesteps", "1024", "--checkpoint-every", "512"]
    assert call(train_rl, [*common, "--run-dir", "whole"], monkeypatch) == 0
    whole = train_rl.load_checkpoint("whole/checkpoint.safetensors")

    saves = []
    original = train_rl._save

    def stop_after_first(folder, run):
        original(folder, run)
        saves.append(run.trainer.timesteps)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_rl, "_save", stop_after_first)
    assert call(train_rl, [*common, "--run-dir", "parts"], monkeypatch) == 130
    assert saves == [512]
    monkeypatch.setattr(train_rl, "_save", original)
    assert call(train_rl, ["--resume", "parts", "--no-progress-bar"], monkeypatch) == 0
    parts = train_rl.load_checkpoint("parts/checkpoint.safetensors")
    assert parts[0].keys() == whole[0].keys()
    for name, tensor in whole[0].items():
        assert (parts[0][name] == tensor).all(), name
    rows = [log(Path(name)) for name in ("whole", "parts")]
    key = "train/value_loss"
    assert [float(r[key]) for r in rows[1]] == pytest.approx([float(r[key]) for r in rows[0]])


def test_the_memories_are_drawn_every_n_updates_and_that_changes_nothing(in_folder, monkeypatch):
    runs = {}
    for name, every, memory in (("none", 0, "expire_span"), ("some", 2, "expire_span"), ("state", 1, "gru")):
        flags = ["--total-timesteps", "640", "--memory-image-every", every, "--memory", memory, "--run-dir", name]
        assert call(train_rl, [*SMALL, *SHORT, *flags], monkeypatch) == 0
        events = EventAccumulator(name, size_guidance={"images": 0}).Reload()
        runs[name] = events.Images("memory/timeline") if "memory/timeline" in events.Tags()["images"] else []
    assert runs["none"] == runs["state"] == []
    assert [image.step for image in runs["some"]] == [128, 384, 640]  # updates 1, 3 and 5
    assert all(image.width > 900 and image.height > 500 for image in runs["some"])
    for without, drawn in zip(log(Path("none")), log(Path("some")), strict=True):
        assert without.keys() == drawn.keys()
        assert all(without[key] == drawn[key] for key in without if not key.startswith("time/"))


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
    assert set(report) == {"env", "env_kwargs", "seed", "policies"}
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


def test_evaluation_does_not_depend_on_the_batch(run_dir):
    """Every environment plays its share, so short episodes are not over-represented; each plays on its own."""
    policy, _ = evaluate.load_policy(run_dir)
    together = evaluate.evaluate(policy, "Corridor-v0", {"max_length": 6}, 12, num_envs=12)
    apart = evaluate.evaluate(policy, "Corridor-v0", {"max_length": 6}, 12, num_envs=20)
    for key in ("success_rate", "mean_episode_length", "live_memories_mean", "live_memories_max"):
        assert together[key] == pytest.approx(apart[key])


@pytest.mark.parametrize("episodes", [3, 40])
def test_bytes_are_those_of_the_memories_that_were_live(episodes):
    """Without forgetting a corridor of 5 tiles has 1 to 5 live on its way, 3 on average, however often it is walked."""
    policy, _ = load_policy(ROOT / "pretrained/corridor-transformer_xl.safetensors")
    result = evaluate.evaluate(policy, "Corridor-v0", {"min_length": 5, "max_length": 5}, episodes)
    assert result["live_memories_mean"] == [3, 3]
    hidden, birth, alive = 4 * policy.config.core.width, 4, 1
    assert result["memory_bytes"] == 2 * 3 * (hidden + birth + alive)


class TellsSometimes(gym.Env):
    """Says `is_success` of every second episode, of the first not."""

    observation_space, action_space = gym.spaces.Box(0, 1, (2,)), gym.spaces.Discrete(2)
    episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action):
        self.episodes += 1
        info = {"is_success": True} if self.episodes % 2 == 0 else {}
        return self.observation_space.low, 1.0, True, False, info


def test_an_environment_that_tells_of_success_now_and_then(in_folder, monkeypatch):
    gym.register("TellsSometimes-v0", entry_point=TellsSometimes)
    try:
        run = [*SMALL, "--env", "TellsSometimes-v0", "--memory", "none", "--run-dir", "x", "--total-timesteps", "256"]
        assert call(train_rl, run, monkeypatch) == 0
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
    assert evaluate.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert evaluate.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


BAD_TRAINING = {
    "unknown environment": (["--env", "Coridor-v0"], "did you mean 'Corridor-v0'"),
    "unknown memory": (["--memory", "expire-span"], "did you mean 'expire_span'"),
    "unknown agent": (["--agent", "pp"], "expected one of ppo, impala, sb3-ppo, sb3-recurrent-ppo, got 'pp'"),
    "unknown flag": (["--learning-rat", "1"], "did you mean --learning-rate"),
    "flag of another kind": (["--memory", "none", "--window", "4"], "unknown flag --window"),
    "no JSON": (["--env-kwargs", "{max_length: 3}"], "expected a JSON object"),
    "no object": (["--env-kwargs", "[1]"], "expected a JSON object"),
    "out of range": (["--env-kwargs", '{"max_length": 1}'], "max_length: expected a whole number"),
    "unknown keyword": (["--env-kwargs", '{"max_lenght": 9}'], "did you mean 'max_length'"),
    "unknown wrap": (["--wrap", "stretch=2", "--wrap", "epsodes=2"], "did you mean 'episodes'"),
    "minibatches": (
        ["--num-envs", "2", "--num-minibatches", "4"],
        "--num-minibatches: expected at most --num-envs (2)",
    ),
    "window of 0": (["--memory", "transformer_xl", "--window", "0"], "--window: expected at least 1, got 0"),
    "no number": (["--num-envs", "many"], "--num-envs"),
    "no value": (["--seed"], "--seed"),
    "no steps": (["--total-timesteps", "0"], "--total-timesteps: expected at least 1"),
    "negative rate": (["--learning-rate", "-1"], "--learning-rate: expected at least 0, got -1.0"),
    "rate that is no number": (["--vf-coef", "nan"], "--vf-coef: expected at least 0, got nan"),
    "infinite rate": (["--learning-rate", "inf"], "--learning-rate: expected a finite number of at least 0, got inf"),
    "infinite gain": (["--action-gain", "inf"], "--action-gain: expected a finite number of at least 0, got inf"),
    "infinite norm": (["--max-grad-norm", "inf"], "--max-grad-norm: expected a finite number, got inf"),
    "budget below the ramp": (["--memory-budget", "8"], "--memory-budget: expected more than --ramp (8), below which"),
    "norm of 0": (["--max-grad-norm", "0"], "--max-grad-norm: expected more than 0, got 0.0"),
    "clipping of 0": (["--clip-coef", "0"], "--clip-coef: expected more than 0, got 0.0"),
    "slack of 0": (["--success-slack", "0"], "--success-slack: expected more than 0, got 0.0"),
    "lift of 0": (["--use-lift", "0"], "--use-lift: expected more than 0, got 0.0"),
    "negative margin": (["--use-margin", "-1"], "--use-margin: expected at least 0, got -1.0"),
    "Adam's decay": (["--adam-beta2", "1"], "--adam-beta2: expected at least 0 and below 1, got 1.0"),
    "seed": (["--seed", "99999999999999999999"], "--seed: expected 0 to 2^31 - 1, got 99999999999999999999"),
    "no memory": (["--memory", ""], "--memory: expected one of expire_span,"),
    "memory twice": (["--memory", "transformer_xl", "--memory", "gru", "--window", "4"], "unknown flag --window"),
    "heads": (["--width", "30"], "--width: expected a multiple of --num-heads"),
    "device": (["--device", "tpu"], "--device: expected"),
    "nothing to resume": (["--resume", "nowhere"], "expected a run directory with config.json"),
    "resume and more": (["--resume", "nowhere", "--seed", "2"], "expected no other flags"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_training_input_is_told_in_one_line_and_leaves_nothing(case, in_folder, monkeypatch, capsys):
    arguments, told = BAD_TRAINING[case]
    assert call(train_rl, arguments, monkeypatch) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(in_folder.iterdir()) == []


def test_an_existing_run_directory_is_refused_and_kept(in_folder, monkeypatch, capsys):
    Path("x").mkdir()
    Path("x/mine.txt").write_text("mine")
    Path("x/config.json").write_text("{}")
    assert call(train_rl, [*SMALL, "--run-dir", "x"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "--resume x" in error and "--overwrite" in error and error.count("\n") == 1
    assert Path("x/mine.txt").read_text() == "mine"
    # Even --overwrite removes nothing before it is known that the new run can begin.
    assert call(train_rl, ["--run-dir", "x", "--overwrite", "--env-kwargs", '{"max_length": 1}'], monkeypatch) == 2
    assert Path("x/mine.txt").read_text() == "mine"


def test_what_is_no_run_is_never_overwritten(in_folder, monkeypatch, capsys):
    Path("thesis").mkdir()
    Path("thesis/chapter.txt").write_text("mine")
    for name in ("thesis", "thesis/chapter.txt"):
        assert call(train_rl, [*SMALL, "--run-dir", name, "--overwrite"], monkeypatch) == 2
        error = capsys.readouterr().err
        assert (
            f"--run-dir: expected a new directory or one of a run, {name} is another" in error
            and error.count("\n") == 1
        )
    assert Path("thesis/chapter.txt").read_text() == "mine"


def _foreign(path: Path) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"a": zeros(2)}, path)


BAD_EVALUATION = {
    "no policy": ([], "expected at least one policy file"),
    "missing": (["gone.safetensors"], "found nothing there"),
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


@pytest.mark.parametrize("config", ["[]", "{}"])
def test_resuming_what_is_no_run_is_told_in_one_line(config, in_folder, monkeypatch, capsys):
    Path("x").mkdir()
    Path("x/config.json").write_text(config)
    assert call(train_rl, ["--resume", "x"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "--resume: expected the settings of a run" in error and error.count("\n") == 1


def test_a_flag_that_is_given_twice_is_taken_as_it_is_given_last():
    """The environment's own defaults too."""
    config = train_rl.parse_config(["--env", "Corridor-v0", "--env", "Portal-v0"])
    assert (config["env"], config["shifted_heads"]) == (
        "Portal-v0",
        train_rl.TUNED["Portal-v0", "ppo"]["shifted_heads"],
    )


FLAGS = {
    "train_rl.py": [*train_rl.parse_config([])],
    "evaluate.py": [f.name for f in dataclasses.fields(evaluate.EvaluateConfig)],
    "visualize.py": [f.name for f in dataclasses.fields(visualize.Flags)],
}


@pytest.mark.parametrize("script", FLAGS)
def test_help_lists_every_flag_and_exits_with_0(script):
    done = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "default" in done.stdout
    for name in set(FLAGS[script]) - {"policies", "path", "training_kwargs"}:  # no flags: arguments, and what follows
        assert f"--{name.replace('_', '-')}" in done.stdout
