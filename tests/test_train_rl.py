"""train_rl.py as a user calls it, good and bad: settings, the run directory, exit codes, one-line errors, nothing
lost."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from script_cases import FORGETFUL, SHORT, SMALL, before_an_evaluation, call, log
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_rl
from expire_span_rl.agents.checkpoint import load_checkpoint
from expire_span_rl.agents.episodes import MOST_ROLLOUTS
from expire_span_rl.agents.forgetting import ForgettingController
from expire_span_rl.agents.kept_policy import KeptPolicy
from expire_span_rl.agents.loss_constraint import LossConstraint
from expire_span_rl.building import build
from expire_span_rl.cli.settings import parse_config
from expire_span_rl.periodic_evaluation import PeriodicEvaluation
from expire_span_rl.policies import load_policy
from expire_span_rl.run_directory import RunDirectory
from expire_span_rl.settings import TUNED


@pytest.mark.parametrize("agent", ["ppo", "impala"])
@pytest.mark.parametrize("memory", ["expire_span", "gru"])
def test_defaults_are_those_that_the_environment_needs(memory, agent):
    """Where the memory kind has such a flag; what the user says counts."""
    asked = ["--memory", memory, "--agent", agent]
    usual, tuned = (parse_config([*asked, "--env", env]).flat() for env in ("Corridor-v0", "Portal-v0"))
    given = TUNED["Portal-v0", agent]
    assert memory == "gru" or given.keys() <= tuned.keys()
    for name in usual.keys() - {"env", "training_kwargs"}:
        assert tuned[name] == given.get(name, usual[name])
    said = parse_config([*asked, "--env", "Portal-v0", "--learning-rate", "0.5", "--final-ent-coef", "0"]).flat()
    assert said == {**tuned, "learning_rate": 0.5, "final_ent_coef": 0.0}


@pytest.mark.parametrize(
    "flags, longest, first",
    [
        ([], 0, 486),  # corridors to 200: 0.95 of the power of two that is at least twice as long
        (["--env-kwargs", '{"max_length": 256}'], 0, 486),
        (["--env-kwargs", '{"max_length": 257}'], 0, 973),
        (["--initial-limit", "77"], 0, 77),
        (["--span-model", "sigmoid"], 512, None),
        (["--memory", "adaptive_span"], 512, None),
        (["--env", "Switch-v0"], 0, 122),  # 8 junctions of 5 steps
        (["--env", "Switch-v0", "--span-model", "sigmoid"], 48, None),  # that, and the ramp: older signals mislead
        (["--env", "Switch-v0", "--ramp", "4", "--memory", "adaptive_span"], 44, None),
        (["--env", "Switch-v0", "--wrap", "stretch=1", "--memory", "adaptive_span"], 88, None),
        (["--env", "Switch-v0", "--max-span", "128"], 128, 122),
        (["--max-span", "64"], 64, 64),
        (["--max-span", "5000", "--env-kwargs", '{"max_length": 2000}'], 5000, 3891),
        (["--env", "Switch-v0", "--env-kwargs", '{"max_hold": 50}'], 0, 486),
        (["--env", "CartPole-v1"], 0, 486),
    ],
)
def test_the_longest_span_is_the_environments_unless_it_is_said(flags, longest, first):
    """The longest span, 0 for none; and the limit of all spans until the task was learned."""
    policy = build(parse_config([*SMALL, *flags])).policy
    assert policy.config.memory_config.max_span == longest
    if first is not None:
        assert [layer.kind.span.initial_limit for layer in policy.core.layers] == [first, first]


@pytest.mark.parametrize("length, scale", [(100, 1.0), (1000, 0.2)])
def test_the_entropy_bonus_is_the_environments_unless_it_is_said(length, scale):
    flags = ["--env-kwargs", json.dumps({"max_length": length}), "--final-ent-coef", "0.5", *SMALL]
    config = build(parse_config(flags)).trainer.agent.config
    assert (config.ent_coef, config.final_ent_coef) == (pytest.approx(0.01 * scale), 0.5)


def test_a_flag_that_is_given_twice_is_taken_as_it_is_given_last():
    """The environment's own defaults too."""
    settings = parse_config(["--env", "Corridor-v0", "--env", "Portal-v0"])
    assert settings.run.env == "Portal-v0"
    assert settings.network.shifted_heads == TUNED["Portal-v0", "ppo"]["shifted_heads"]


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


@pytest.mark.parametrize(
    "flags",
    [
        [],  # too few hard episodes to forget
        FORGETFUL,
        [*FORGETFUL, "--agent", "impala"],
    ],
)
def test_resume_continues_to_what_an_uninterrupted_run_reaches(flags, in_folder, monkeypatch):
    """Weights, log and timesteps: 1,024 steps at once, or 512 and then the rest. Also where forgetting has
    begun and a policy is kept."""
    common = [*SMALL, *SHORT, "--total-timesteps", "1024", "--checkpoint-every", "512", *flags]
    assert call(train_rl, [*common, "--run-dir", "whole"], monkeypatch) == 0
    whole = load_checkpoint("whole/checkpoint.safetensors")

    saves = []
    original = RunDirectory.save

    def stop_after_first(directory):
        original(directory)
        saves.append(directory.saved)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "save", stop_after_first)
    assert call(train_rl, [*common, "--run-dir", "parts"], monkeypatch) == 130
    assert saves == [512]
    saved = load_checkpoint("parts/checkpoint.safetensors")[1]
    assert (saved["controller"]["is_success"] is True) == (saved["best"] is not None) == bool(flags)
    monkeypatch.setattr(RunDirectory, "save", original)
    assert call(train_rl, ["--resume", "parts", "--no-progress-bar"], monkeypatch) == 0
    parts = load_checkpoint("parts/checkpoint.safetensors")
    assert parts[0].keys() == whole[0].keys()
    for name, tensor in whole[0].items():
        assert (parts[0][name] == tensor).all(), name
    rows = [log(Path(name)) for name in ("whole", "parts")]
    key = "train/value_loss"
    assert [float(r[key]) for r in rows[1]] == pytest.approx([float(r[key]) for r in rows[0]])


def test_snapshots_are_of_the_steps_that_were_asked_for(in_folder, monkeypatch):
    """Also where checkpoints are written in between, and in a run that was stopped and resumed."""
    flags = [*SMALL, *SHORT, "--total-timesteps", "1024", "--checkpoint-every", "300", "--run-dir", "x"]
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "record", stopping_after(RunDirectory.record, 256))
        assert call(train_rl, [*flags, "--checkpoint-minutes", "1e-9"], patch) == 130
    assert call(train_rl, ["--resume", "x", "--no-progress-bar"], monkeypatch) == 0
    names = [path.stem for path in sorted(Path("x/checkpoints").iterdir())]
    assert names == [f"policy_{steps:09d}" for steps in (384, 768, 1024)]  # none of where it was stopped


def stopping_after(record, timesteps: int):
    """`RunDirectory.record`, which asks the training to stop after so many steps."""

    def recorded(directory, metrics):
        record(directory, metrics)
        if directory.run.trainer.timesteps >= timesteps:
            directory.run.trainer.stop.set()

    return recorded


def test_a_run_that_forgets_by_its_return_is_resumed(in_folder, monkeypatch):
    flags = [*SMALL, *FORGETFUL, "--env", "CartPole-v1", "--env-kwargs", "{}", "--seed", "2"]  # it keeps a policy
    assert call(train_rl, [*flags, "--total-timesteps", "512", "--run-dir", "x"], monkeypatch) == 0
    saved = load_checkpoint("x/checkpoint.safetensors")[1]
    assert saved["controller"]["is_success"] is False and saved["best"]["is_success"] is False
    more = ["--resume", "x", "--total-timesteps", "1024", "--no-progress-bar"]
    assert call(train_rl, more, monkeypatch) == 0
    assert [int(float(row["time/total_timesteps"])) for row in log(Path("x"))] == list(range(128, 1025, 128))


def test_products_in_bfloat16(in_folder, monkeypatch, capsys):
    """They are announced, a resumed run goes on with them, and an agent that has none refuses them."""
    flags = [*SMALL, *SHORT, "--precision", "bf16", "--run-dir", "x"]
    assert call(train_rl, [*flags, "--total-timesteps", "512"], monkeypatch) == 0
    assert "device   cpu (there is no GPU), products with weights in bfloat16, 1 thread" in capsys.readouterr().err
    assert call(train_rl, ["--resume", "x", "--total-timesteps", "1024", "--no-progress-bar"], monkeypatch) == 0
    assert "products with weights in bfloat16" in capsys.readouterr().err
    assert json.loads(Path("x/config.json").read_text())["precision"] == "bf16"
    assert build(parse_config(flags)).policy.precision == "bf16"
    for wrong, message in (
        (["--precision", "fp16"], "--precision: expected one of float32, bf16, got 'fp16'"),
        (["--precision", "bf16", "--agent", "sb3-ppo"], "--precision: expected float32, since sb3-ppo brings its own"),
    ):
        assert call(train_rl, [*wrong, "--run-dir", "y"], monkeypatch) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not Path("y").exists()


def test_evaluations_on_the_way_are_logged_and_change_nothing(in_folder, monkeypatch):
    """Every 256 of 640 steps, and at the end; Stable-Baselines3's names, in the log and in TensorBoard."""
    common = [*SMALL, *SHORT, "--total-timesteps", "640"]
    flags = ["--eval-every", "256", "--n-eval-episodes", "7", "--run-dir", "with"]
    assert call(train_rl, [*common, "--run-dir", "without"], monkeypatch) == 0
    assert call(train_rl, [*common, *flags], monkeypatch) == 0
    weights = [load_checkpoint(f"{name}/checkpoint.safetensors")[0] for name in ("with", "without")]
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []
    names = ["eval/live_mean", "eval/mean_ep_length", "eval/mean_reward", "eval/success_rate"]
    rows = log(Path("with"))
    assert [int(row["time/total_timesteps"]) for row in rows if row["eval/mean_reward"]] == [256, 512, 640]
    assert [name for name in rows[0] if name.startswith("eval/")] == names
    scalars = EventAccumulator("with").Reload()
    assert [event.step for event in scalars.Scalars("eval/success_rate")] == [256, 512, 640]
    policy, info = load_policy("with/checkpoints/policy_000000640.safetensors")
    assert 0 <= float(rows[3]["eval/success_rate"]) <= 1 and info["env"] == "Corridor-v0" and policy is not None


def test_evaluations_on_the_way_have_episodes_of_their_own(monkeypatch):
    """Others each time, and none that evaluate.py could report again: it takes seeds below 2^31."""
    seeds = []

    def evaluate_in(policy, env, name, protocol, **options):
        seeds.append(protocol.seed)
        return {"mean_return": 0.0, "mean_episode_length": 1.0, "success_rate": None, "live_memories_mean": []}

    monkeypatch.setattr("expire_span_rl.periodic_evaluation.evaluate_in", evaluate_in)
    run = build(parse_config([*SMALL, *SHORT, "--eval-every", "1"]))
    evaluation = PeriodicEvaluation(run, lambda text: None)
    monkeypatch.setattr(run.trainer, "keep_evaluated", lambda result: None)
    for _ in range(2):
        run.trainer.update()
        evaluation.metrics()
    evaluation.metrics()  # of the same update, as after a resume
    assert seeds == [2**31 + 1, 2**31 + 2, 2**31 + 2]
    run.trainer.close()


def test_what_is_kept_has_passed_an_evaluation(in_folder, monkeypatch):
    """Success 1 in training throughout; in evaluations 1, 0.4, 1, 0.97 with a target of 0.98: the third is kept, at the
    step of the weights that were evaluated."""
    run = build(parse_config([*SMALL, *SHORT, "--eval-every", "1"]))
    trainer = run.trainer
    trainer.window.hard_score = lambda: (1.0, 1000)
    assert not trainer.keeps_evaluated and PeriodicEvaluation(run, print) and trainer.keeps_evaluated
    kept = []
    for score in (1.0, 0.4, 1.0, 0.97):
        trainer.update()
        trainer.window.reports_success = True
        trainer.window.live.clear()
        trainer.window.live.extend([5.0] * MOST_ROLLOUTS)
        trainer.keep_evaluated({"success_rate": score, "mean_return": 0.0})
        kept.append(trainer.best.timesteps)
    assert kept == [128, 128, 384, 384]
    trainer.close()


def test_an_evaluation_without_any_success_fails(monkeypatch):
    """Where some training episodes reported success, whatever its return is. With --loss-tolerance its bits count."""
    settings = parse_config([*SMALL, *SHORT, "--eval-every", "1"])
    trainer = before_an_evaluation(settings, 1.0, reports_success=True)
    trainer.keep_evaluated({"success_rate": None, "mean_return": 2.0})
    assert trainer.best is None
    loss = trainer.controller.loss = LossConstraint(0.5)
    loss.bits = loss.best = loss.first = 2.0
    trainer.controller.learned = True
    for bits in (None, 3.1):
        trainer.keep_evaluated({"success_rate": 1.0, "mean_return": 2.0, "bits": bits})
        assert trainer.best is None
    trainer.keep_evaluated({"success_rate": 0.4, "mean_return": 2.0, "bits": 2.9})
    assert (trainer.best.score, trainer.best.is_success) == (-2.0, False)
    trainer.close()


def test_an_evaluation_that_was_given_up_is_made_up_for(in_folder, monkeypatch, capsys):
    """One on the way goes into the next row. The last one is reported, and decides on the policy that is kept. Without
    it a training has not ended."""
    flags = [*SMALL, *SHORT, *FORGETFUL, "--total-timesteps", "512", "--eval-every", "256", "--n-eval-episodes", "5"]

    def stop(self):
        self._run.trainer.stop.set()
        return original(self)

    original = PeriodicEvaluation._evaluate
    for arguments in ([*flags, "--run-dir", "x"], ["--resume", "x", "--no-progress-bar"]):
        with monkeypatch.context() as patch:
            patch.setattr(PeriodicEvaluation, "_evaluate", stop if arguments[0] != "--resume" else stopping_later(stop))
            assert call(train_rl, arguments, patch) == 130
        said = capsys.readouterr().err
        assert "steps was given up: --resume x makes it" in said
    rows = log(Path("x"))
    assert [int(float(row["time/total_timesteps"])) for row in rows if row["eval/mean_reward"]] == [384]
    assert call(train_rl, ["--resume", "x", "--no-progress-bar"], monkeypatch) == 0
    assert "evaluated after 512 steps: mean_reward" in capsys.readouterr().err
    assert len(log(Path("x"))) == 4


def stopping_later(stop):
    """`stop` from the second evaluation on."""
    original, counts = PeriodicEvaluation._evaluate, itertools.count()
    return lambda self: stop(self) if next(counts) else original(self)


def test_what_no_longer_meets_the_target_is_let_go_whether_an_evaluation_passes_or_not(in_folder, monkeypatch):
    """Without success the target moves with the best return."""
    run = build(parse_config([*SMALL, *SHORT, "--eval-every", "1"]))
    trainer = run.trainer
    PeriodicEvaluation(run, print)
    trainer.update()
    trainer.judge.keeper.kept = KeptPolicy(
        score=0.5,
        is_success=True,
        error=0.0,
        live=1.0,
        timesteps=128,
        fewest=1.0,
        released=True,
        tested=True,
        own=False,
        weights={},
    )
    monkeypatch.setattr(trainer.controller, "target", lambda is_success: 0.4)
    trainer.update()
    assert trainer.best is not None
    monkeypatch.setattr(trainer.controller, "target", lambda is_success: 0.6)
    trainer.update()
    assert trainer.best is None
    trainer.close()


def test_what_is_said_of_a_kept_return_is_no_percentage(in_folder, monkeypatch, capsys):
    """CartPole reports no success. Every update meets the target here."""
    monkeypatch.setattr(ForgettingController, "holds", lambda *arguments: True)
    monkeypatch.setattr(ForgettingController, "target", lambda *arguments: -1e9)
    flags = ["--env", "CartPole-v1", "--num-envs", "8", "--num-steps", "64", "--run-dir", "run", "--memory", "none"]
    assert call(train_rl, [*flags, "--total-timesteps", "2048"], monkeypatch) == 0
    said = capsys.readouterr().err
    assert re.search(
        r"policy\.safetensors: the policy of step [\d,]+, a return of \d+\.\d+ in the latest episodes", said
    )


def test_an_evaluation_on_the_way_ends_when_the_training_is_asked_to_stop(in_folder, monkeypatch):
    run = build(parse_config([*SMALL, *SHORT, "--eval-every", "1"]))
    evaluation = PeriodicEvaluation(run, print)
    run.trainer.update()
    assert evaluation.metrics()["eval/mean_ep_length"] > 0
    run.trainer.stop.set()
    assert evaluation.metrics() == {}
    run.trainer.close()


def test_an_evaluation_that_does_not_end_is_told_once_and_the_training_goes_on(in_folder, monkeypatch, capsys):
    monkeypatch.setattr("expire_span_rl.periodic_evaluation.MAX_STEPS", 2)
    monkeypatch.setattr("expire_span_rl.periodic_evaluation.longest_episode", lambda env: None)
    assert call(train_rl, [*SMALL, *SHORT, "--total-timesteps", "640", "--eval-every", "128"], monkeypatch) == 0
    said = capsys.readouterr().err
    assert said.count("an evaluation failed: Corridor-v0, environment") == 1 and "Traceback" not in said


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


BAD_TRAINING = {
    "unknown environment": (["--env", "Coridor-v0"], "did you mean 'Corridor-v0'"),
    "unknown memory": (["--memory", "expire-span"], "did you mean 'expire_span'"),
    "unknown agent": (
        ["--agent", "pp"],
        "expected one of ppo, impala, supervised, sb3-ppo, sb3-recurrent-ppo, got 'pp'",
    ),
    "unknown flag": (["--learning-rat", "1"], "did you mean --learning-rate"),
    "flag of another kind": (["--memory", "none", "--window", "4"], "unknown flag --window"),
    "no JSON": (["--env-kwargs", "{max_length: 3}"], "expected a JSON object"),
    "no object": (["--env-kwargs", "[1]"], "expected a JSON object"),
    "out of range": (["--env-kwargs", '{"max_length": 1}'], "max_length: expected a whole number"),
    "unknown keyword": (["--env-kwargs", '{"max_lenght": 9}'], "did you mean 'max_length'"),
    "keyword of a flag": (["--env-kwargs", '{"num_envs": 4}'], "got 'num_envs', which --num-envs sets"),
    "wraps in two places": (
        ["--wrap", "stretch=2", "--env-kwargs", '{"wraps": ["episodes=2"]}'],
        '--wrap: expected wraps here or as "wraps" in --env-kwargs, got both',
    ),
    "threads": (["--torch-threads", "1e6"], "--torch-threads: expected at most 1,024, got 1000000"),
    "unknown wrap": (["--wrap", "stretch=2", "--wrap", "epsodes=2"], "did you mean 'episodes'"),
    "minibatches": (
        ["--num-envs", "2", "--num-minibatches", "4"],
        "--num-minibatches: expected at most --num-envs (2)",
    ),
    "window that no file may have": (
        ["--memory", "transformer_xl", "--window", "10000000000"],
        "--window: expected a number up to 2,147,483,647, got 10000000000",
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
    "enough for use above 1": (
        ["--use-enough", "1.5"],
        "--use-enough: expected a share from --use-share (0.1) to 1, got 1.5",
    ),
    "enough for use below the least share": (
        ["--use-enough", "0.05"],
        "--use-enough: expected a share from --use-share (0.1) to 1, got 0.05",
    ),
    "no such preset": (["--preset", "few"], "--preset: expected one of none, few_memories, got 'few'"),
    "preset of another memory": (
        ["--preset", "few_memories", "--memory", "gru"],
        "--preset few_memories: expected --memory expire_span with it, got gru",
    ),
    "least use coefficient of 1": (
        ["--min-use-coef", "1"],
        "--min-use-coef: expected 0, or more than 1 and at most --use-coef (100), got 1",
    ),
    "least use coefficient above the first": (
        ["--use-coef", "30", "--min-use-coef", "40"],
        "--min-use-coef: expected 0, or more than 1 and at most --use-coef (30), got 40",
    ),
    "least use coefficient of bounded spans": (
        ["--min-use-coef", "2", "--span-model", "sigmoid"],
        "--min-use-coef: expected --span-model survival with it",
    ),
    "negative margin": (["--use-margin", "-1"], "--use-margin: expected at least 0, got -1.0"),
    "endless layers": (["--num-layers", "1e18"], "--num-layers: expected at most 128, got 1000000000000000000"),
    "endless passes": (["--update-epochs", "1e9"], "--update-epochs: expected at most 10,000, got 1000000000"),
    "endless width": (["--width", "1e9"], "--width: expected at most 65,536, got 1000000000"),
    "endless episodes": (["--n-eval-episodes", "1e9"], "--n-eval-episodes: expected at most 1,000,000, got 1000000000"),
    "no such span model": (["--span-model", "sigmoidal"], "--span-model: expected one of survival, sigmoid, got"),
    "dropout of no fraction": (["--span-dropout"], "--span-dropout: expected --span-model sigmoid with it"),
    "Adam's decay": (["--adam-beta2", "1"], "--adam-beta2: expected at least 0 and below 1, got 1.0"),
    "seed": (["--seed", "99999999999"], "--seed: expected 0 to 2^31 - 1, got 99999999999"),
    "no memory": (["--memory", ""], "--memory: expected one of expire_span,"),
    "memory twice": (["--memory", "transformer_xl", "--memory", "gru", "--window", "4"], "unknown flag --window"),
    "heads": (["--width", "30"], "--width: expected a multiple of --num-heads"),
    "device": (["--device", "tpu"], "--device: expected"),
    "no folder to resume": (["--resume", ""], "--resume: expected the name of a file or a folder, got ''"),
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
    Path("x/config.json").write_text(json.dumps(parse_config([]).flat()))
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


@pytest.mark.parametrize("config", ["[]", "{}"])
def test_resuming_what_is_no_run_is_told_in_one_line(config, in_folder, monkeypatch, capsys):
    Path("x").mkdir()
    Path("x/config.json").write_text(config)
    assert call(train_rl, ["--resume", "x"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "config.json: expected the settings of a run" in error and error.count("\n") == 1
