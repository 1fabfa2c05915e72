"""train_sequence.py end to end: what it writes, continues and refuses; its policies evaluated and shown."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from script_cases import ROOT, before_an_evaluation, call, log

import evaluate
import train_rl
import train_sequence
import visualize
from expire_span_rl.agents.checkpoint import checkpoint_bytes, load_checkpoint
from expire_span_rl.building import build
from expire_span_rl.cli.train_sequence import parse_sequence, resumed_sequence
from expire_span_rl.env_objects import reference
from expire_span_rl.periodic_evaluation import PeriodicEvaluation
from expire_span_rl.policies import KINDS, load_policy, save_policy
from expire_span_rl.sequences import TASKS

TINY = ["--num-envs", "8", "--num-steps", "16", "--num-minibatches", "2", "--width", "16", "--no-progress-bar"]
TINY += ["--delay", "6", "--length", "3", "--vocabulary", "3", "--run-dir", "x", "--checkpoint-every", "512"]


def test_a_run_is_trained_continued_evaluated_and_shown(in_folder, monkeypatch, capsys):
    """Twice the same run is the same to the last bit; --total-blocks trains on."""
    assert call(train_sequence, [*TINY, "--total-blocks", "12", "--run-dir", "whole"], monkeypatch) == 0
    assert call(train_sequence, [*TINY, "--total-blocks", "12"], monkeypatch) == 0
    config = json.loads(Path("x/config.json").read_text())
    assert (config["env"], config["agent"], config["total_timesteps"]) == ("Copy-v0", "supervised", 12 * 8 * 16)
    assert json.loads(config["env_kwargs"]) == {"delay": 6, "length": 3, "vocabulary": 3, "place": True}
    rows = log(Path("x"))
    assert len(rows) == 12 and all(float(row["train/bits"]) > 0 for row in rows)
    (ours, _), (theirs, _) = (load_checkpoint(f"{name}/checkpoint.safetensors") for name in ("x", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert call(train_sequence, ["--resume", "x", "--total-blocks", "14", "--no-progress-bar"], monkeypatch) == 0
    assert len(log(Path("x"))) == 14
    resumed = resumed_sequence("x", ["--resume", "x", "--total-blocks", "0"])
    assert resumed.run.total_timesteps == 14 * 8 * 16  # 0: as many as before
    for arguments, message in (
        (["--resume="], "--resume: expected the name of a file or a folder, got ''"),
        (["--total-blocks"], "--total-blocks: expected a whole number after it, got nothing"),
        (["--total-blocks", "20", "--total-blocks", "--quiet"], "expected a whole number after it, got '--quiet'"),
        (["--total-blocks", "3"], "--total-blocks: expected more than the 14 blocks of the run so far, got 3"),
        (["--total-timesteps", "9"], "--quiet, --no-quiet, --learning-rate, --total-blocks, since the run's own"),
    ):
        capsys.readouterr()
        assert call(train_sequence, ["--resume", "x", *arguments], monkeypatch) == 2
        assert message in capsys.readouterr().err
    assert call(evaluate, ["x", "--episodes", "8", "--num-envs", "4", "--json", "out.json"], monkeypatch) == 0
    report = json.loads(Path("out.json").read_text())
    assert report["env_kwargs"] == {"delay": 6, "length": 3, "vocabulary": 3, "place": True}
    (figures,) = report["policies"]
    assert 0 <= figures["accuracy"] <= 1 and figures["mean_episode_length"] == 12 and figures["agent"] == "supervised"
    assert call(visualize, ["x", "--out", "memory.html", "--json", "memory.json"], monkeypatch) == 0
    assert Path("memory.html").stat().st_size > 10_000 and "Copy-v0" in capsys.readouterr().out


def test_what_is_kept_has_passed_an_evaluation_by_its_accuracy(in_folder):
    """As in training. The share of strings without any mistake is lower."""
    trainer = before_an_evaluation(parse_sequence([*TINY, "--eval-every", "1"]), 1.0, reports_success=True)
    for accuracy, success, is_kept in ((0.97, 0.99, False), (0.99, 0.8, True)):
        trainer.keep_evaluated({"success_rate": success, "mean_return": 0.0, "bits": 0.1, "accuracy": accuracy})
        assert (trainer.best is not None) == is_kept
    trainer.close()


def test_what_is_kept_has_passed_an_evaluation_by_its_bits_where_there_is_no_success(in_folder):
    """As in training, whatever the return is, which is a share from 0 to 1."""
    settings = parse_sequence([*write_text(Path("a.txt")), "--loss-tolerance", "0", "--eval-every", "1"])
    trainer = before_an_evaluation(settings, -2.0, reports_success=False)
    trainer.controller.record.first, trainer.controller.record.best = -4.0, -2.0  # a target of -2.04
    trainer.controller.learned = True
    for bits, is_kept in ((None, False), (2.1, False), (2.0, True)):
        trainer.keep_evaluated({"success_rate": None, "mean_return": 0.9, "bits": bits, "accuracy": 0.9})
        assert (trainer.best is not None) == is_kept
    trainer.close()


def test_help_does_not_say_that_import_registers_environments(monkeypatch, capsys):
    """They could not be used. train_rl.py's can."""
    titles = []
    for script in (train_sequence, train_rl):
        assert call(script, ["--help"], monkeypatch) == 0
        parts = capsys.readouterr().out.split("\n\n")
        (part,) = [part for part in parts if "--import MODULE" in part]
        titles.append(part.split(":")[0])
        assert ("registers\n      environments or memory kinds" in part) == (script is train_rl)
    assert titles == ["memory", "environment"]


def test_a_memory_kind_of_ones_own_is_trained_continued_and_evaluated(in_folder, monkeypatch):
    monkeypatch.setitem(KINDS, "alibi", KINDS["none"])  # so that it is gone after this test
    named = ["--import", str(ROOT / "examples/own_memory_kind.py")]
    flags = [*TINY, *named, "--memory", "alibi", "--window", "7", "--total-blocks", "4"]
    assert call(train_sequence, flags, monkeypatch) == 0
    assert call(train_sequence, ["--resume", "x", "--total-blocks", "6", "--no-progress-bar"], monkeypatch) == 0
    assert len(log(Path("x"))) == 6 and json.loads(Path("x/config.json").read_text())["window"] == 7
    assert call(evaluate, ["x", *named, "--episodes", "2"], monkeypatch) == 0


def test_strings_longer_than_the_usual_limit_are_evaluated(in_folder, monkeypatch):
    monkeypatch.setattr("expire_span_rl.periodic_evaluation.MAX_STEPS", 5)
    run = build(parse_sequence([*TINY, "--eval-every", "1", "--n-eval-episodes", "2"]))
    evaluation = PeriodicEvaluation(run, print)
    run.trainer.update()
    assert evaluation.metrics()["eval/mean_ep_length"] == 12
    run.trainer.close()


def write_text(path: Path) -> list[str]:
    """A text of 2,000 characters, and the flags of a small training on it."""
    path.write_text("".join(f"{i} and {i + 1} make {2 * i + 1}. " for i in range(200))[:2000])
    flags = ["--task", "text", "--file", str(path), "--stream-length", "40", "--width", "16", "--num-layers", "2"]
    flags += ["--num-envs", "4", "--num-steps", "16", "--checkpoint-every", "512", "--memory-image-every", "0"]
    return [*flags, "--num-minibatches", "2", "--no-progress-bar"]


def test_a_text_is_learned_continued_evaluated_and_shown(in_folder, monkeypatch, capsys):
    """A policy file names no path: who evaluates names the text."""
    flags = [*write_text(Path("a.txt")), "--run-dir", "x", "--min-hard-episodes", "10"]
    assert call(train_sequence, [*flags, "--total-blocks", "8"], monkeypatch) == 0
    twice = ["--total-blocks", "9", "--total_blocks=12"]  # the last of two equal flags counts
    assert call(train_sequence, ["--resume", "x", *twice, "--no-progress-bar"], monkeypatch) == 0
    rows = log(Path("x"))
    assert len(rows) == 12 and all(float(row["train/bits"]) > 0 for row in rows)
    _, info = load_policy("x")
    assert info["env_kwargs"] == {"stream_length": 40} and info["private_kwargs"] == ["file"]
    assert str(in_folder).encode() not in Path("x/policy.safetensors").read_bytes()
    text = Path("a.txt").read_text()
    for changed in (text[:1500], text + "more"):
        Path("a.txt").write_text(changed)
        capsys.readouterr()
        assert call(train_sequence, ["--resume", "x", "--total-blocks", "14"], monkeypatch) == 2
        error = capsys.readouterr().err
        assert "file: expected the text as it was, with 1,800 characters for train" in error and error.count("\n") == 1
    Path("a.txt").write_text(text)
    named = ["--env-kwargs", json.dumps({"file": "a.txt", "part": "test"})]
    for script in (evaluate, visualize):
        capsys.readouterr()
        assert call(script, ["x"], monkeypatch) == 2
        error = capsys.readouterr().err
        assert "expected 'file' from you, since a policy file cannot name it: --env-kwargs" in error
        assert error.count("\n") == 1
    found = []
    for number in ("1", "4"):
        arguments = ["x", "--episodes", "8", "--num-envs", number, "--json", "out.json", *named]
        assert call(evaluate, arguments, monkeypatch) == 0
        found.append(json.loads(Path("out.json").read_text())["policies"][0])
    assert "bits:  all: " in capsys.readouterr().out
    assert all(f["success_rate"] is None and f["mean_episode_length"] == 40 and f["bits"] > 2 for f in found)
    assert call(visualize, ["x", *named, "--out", "memory.html", "--json", "memory.json"], monkeypatch) == 0
    assert Path("memory.html").stat().st_size > 10_000
    (episode,) = json.loads(Path("memory.json").read_text())["episodes"]
    shown = [episode["shows"]["texts"][i] for i in episode["shows"]["which"]]
    said = "".join({"space": " "}.get(name, name) for name in shown)
    assert len(said) == 40 and said in Path("a.txt").read_text()[1900:]


def test_a_file_that_a_policy_names_is_not_read(in_folder, monkeypatch, capsys):
    """Whoever made the policy must not choose what is read here."""
    Path("secret.txt").write_text("nothing to see here")
    run = build(parse_sequence([*write_text(Path("a.txt")), "--run-dir", "x"]))
    info = {**run.info, "env_kwargs": {"file": "secret.txt", "stream_length": 40}}
    save_policy(run.policy, "asking.safetensors", info)
    save_policy(run.policy, "silent.safetensors", {**info, "private_kwargs": None})
    run.trainer.close()
    assert call(evaluate, ["asking.safetensors"], monkeypatch) == 2
    assert "expected 'file' from you, since a policy file cannot name it" in capsys.readouterr().err
    assert call(evaluate, ["silent.safetensors", "--episodes", "2", "--json", "out.json"], monkeypatch) == 0
    assert json.loads(Path("out.json").read_text())["env_kwargs"] == {"stream_length": 40}  # the standard library


def test_a_text_that_python_gives_as_an_environment_is_not_named_either(in_folder):
    write_text(Path("a.txt"))
    env = gym.make_vec("Text-v0", 4, vectorization_mode="vector_entry_point", file="a.txt", stream_length=40)
    assert reference(env) == {"env": "Text-v0", "env_kwargs": {"stream_length": 40}, "private_kwargs": ["file"]}


@pytest.mark.parametrize("task", TASKS)
def test_a_stopped_run_continues_bit_by_bit(task, in_folder):
    """Through a file: the state after block 8 continued to block 12 is that of 12 blocks in one go."""
    text = write_text(Path("a.txt"))
    collision = ["--task", "collision", "--grid", "4", "--stream-length", "40", *text[6:]]
    flags = {"copy": TINY, "text": text, "collision": collision}[task]
    config = parse_sequence([*flags, "--total-blocks", "12"])
    whole, first, second = (build(config).trainer for _ in range(3))
    while not whole.done:
        whole.update()
    for _ in range(8):
        first.update()
    Path("state").write_bytes(checkpoint_bytes(*first.state()))
    second.load_state(*load_checkpoint("state"))
    while not second.done:
        second.update()
    ours, theirs = second.state(), whole.state()
    assert [name for name in theirs[0] if not torch.equal(ours[0][name], theirs[0][name])] == []
    assert json.dumps(ours[1]) == json.dumps(theirs[1])


def test_copying_over_64_steps_is_learned():
    """20 symbols of 10 after up to 64 steps of noise, with the defaults. Three seeds took 0.25M to 0.35M steps."""
    trainer = build(parse_sequence(["--delay", "64"])).trainer
    while trainer.timesteps < 500_000:
        if trainer.update().get("rollout/hard_score", 0) > 0.99:
            break
    assert trainer.window.hard_score()[0] > 0.99


@pytest.mark.parametrize("task", TASKS)
def test_the_papers_loss_is_a_fixed_charge_on_bounded_spans(task, in_folder):
    flags = {"copy": TINY, "text": write_text(Path("a.txt")), "collision": ["--task", "collision", "--width", "16"]}
    paper = ["--span-loss", "paper", "--span-model", "sigmoid", "--use-coef", "0"]  # the last two say the same
    settings = parse_sequence([*flags[task], *paper, "--span-coef", "0.5", "--max-span", "32"])
    assert (settings.memory.span_model, settings.memory.use_coef) == ("sigmoid", 0.0)
    assert settings.forgetting.fixed_pressure == 1.0
    tolerance = str(settings.forgetting.loss_tolerance)  # what is the default may be said
    said = parse_sequence(
        [*flags[task], *paper, "--loss-tolerance", tolerance, "--span-coef", "0.5", "--max-span", "32"]
    )
    assert said == settings
    trainer = build(settings).trainer
    spans = [layer.kind.span for layer in trainer.policy.core.layers]
    before = [float(span.bias.detach()) for span in spans]
    assert trainer.update()["memory/pressure"] == 1.0
    assert all(float(span.bias.detach()) < level for span, level in zip(spans, before, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_an_environment_that_says_what_is_right(task):
    arguments = ["--task", task, "--num-envs", "8", "--num-steps", "64", "--width", "16"]
    trainer = build(parse_sequence(arguments)).trainer
    block, _ = trainer.collector.collect()
    assert block.actions.shape == block.is_query.shape == (64, 8) and block.is_query.dtype == torch.bool
    trainer.close()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task", "cpoy"], "--task: expected one of copy, collision, text, got 'cpoy'; did you mean 'copy'?"),
        (["--task", "colision"], "got 'colision'; did you mean 'collision'?"),
        (["--task", "collision", "--delay", "5"], "--delay: expected only with --task copy, got --task collision"),
        (["--stream-length", "5"], "--stream-length: expected only with --task collision or text, got --task copy"),
        (["--task", "collision", "--grid", "5"], "grid: expected an even number"),
        (["--task", "collision", "--present-share", "2"], "--present-share: expected 0 to 1, got 2"),
        (["--memory", "gur"], "--memory: expected one of expire_span"),
        (["--delay", "0"], "--delay: expected at least 1, got 0"),
        (["--delay", "2000", "--max-span", "1024"], "--max-span 2,020 would be long enough"),
        (["--delay", "2000", "--initial-limit", "1024"], "--delay: expected at most 1,004 with --initial-limit 1,024"),
        (["--vocabulary", "65"], "vocabulary: expected a whole number from 2 to 64, got 65"),
        (["--task", "texxt"], "got 'texxt'; did you mean 'text'?"),
        (["--file", "x"], "--file: expected only with --task text, got --task copy"),
        (["--task", "text", "--grid", "8"], "--grid: expected only with --task collision, got --task text"),
        (["--task", "text", "--file", "missing"], "--file: expected a text file or a folder of text files, but "),
        (
            ["--task", "text", "--file", "/dev/null"],
            "--file: expected a regular file or a folder, but /dev/null is neither",
        ),
        (["--task", "text", "--file", "."], "--file: expected text files (.c, "),
        (
            ["--task", "text", "--num-steps", "100000000"],
            "--file: expected more than 100000000 characters for training",
        ),
        (["--task", "text", "--loss-tolerance", "-1"], "--loss-tolerance: expected at least 0, got -1"),
        (["--total-blocks", "-1"], "--total-blocks: expected at least 0, got -1"),
        (["--env", "Corridor-v0"], "unknown flag --env"),
        (["--total-timesteps", "9"], "unknown flag --total-timesteps: did you mean --total-blocks?"),
        (
            ["--memory", "gru", "--window", "3"],
            "unknown flag --window with --memory gru: --memory transformer_xl, --memory compressive would have it",
        ),
        (["--memory", "gru", "--span-loss", "paper"], "with --memory gru: --memory expire_span would have it"),
        (["--memory", "gru", "--fixed-pressure", "1"], "unknown flag --fixed-pressure: see --help"),
        (["--memory", "gru", "--no-qk-norm"], "unknown flag --no-qk-norm with --memory gru: --memory expire_span, "),
        (
            ["--span-loss", "paper", "--span-model", "survival", "--use-coef", "5"],
            "--span-loss paper: expected --span-model sigmoid, got --span-model survival",
        ),
        (["--use_coef=5", "--span-loss=paper"], "--span-loss paper: expected --use-coef 0, got --use-coef 5"),
        (["--span-loss", "paper", "--no-forgetting"], "--span-loss paper: expected --forgetting, got --no-forgetting"),
        (
            ["--span-loss", "paper", "--pressure-rise", "0.1"],
            "--span-loss paper: expected --pressure-rise 0.05, got --pressure-rise 0.1",
        ),
        (
            ["--span-loss", "paper", "--success-slack", "0.1"],
            "--span-loss paper: expected --success-slack 0.03, got --success-slack 0.1",
        ),
        (
            ["--span-loss", "paper", "--full-evidence", "9"],
            "--span-loss paper: expected --full-evidence 5, got --full-evidence 9",
        ),
        (
            ["--span-loss", "paper", "--initial-limit", "900"],
            "--span-loss paper: expected --initial-limit 0, got --initial-limit 900",
        ),
        *[
            (["--span-loss", "paper", name, value], f"--span-loss paper: expected {name} {usual}, got {name} {value}")
            for name, usual, value in (
                ("--use-lift", "32", "4"),
                ("--use-share", "0.1", "0.2"),
                ("--use-enough", "1", "0.5"),
                ("--min-use-coef", "0", "2"),
                ("--use-margin", "0.25", "0.5"),
                ("--renew-every", "16", "5"),
                ("--time-skips", "0.25", "0.5"),
                ("--time-gaps", "0.03", "0"),
                ("--attention-cost", "0", "1"),
            )
        ],
        (["--span-loss", "papr"], "--span-loss: expected one of learned, paper, got 'papr'"),
        (["--num-envs", "4", "--num-minibatches", "8"], "--num-minibatches: expected at most --num-envs (4)"),
        (["--resume", "nowhere"], "nowhere: expected a run directory with config.json"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(
    arguments, message, in_folder, monkeypatch, capsys
):
    assert call(train_sequence, arguments, monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(in_folder.iterdir()) == []


def test_supervision_needs_a_task_that_says_what_is_right(in_folder, monkeypatch, capsys):
    assert call(train_rl, ["--agent", "supervised", "--num-envs", "8", "--no-progress-bar"], monkeypatch) == 2
    assert "expected streams that give right actions, such as Copy-v0" in capsys.readouterr().err
    assert list(in_folder.iterdir()) == []


def test_a_run_of_train_rl_is_continued_there(run_dir, monkeypatch, capsys):
    assert call(train_sequence, ["--resume", run_dir], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "which train_rl.py --resume continues" in error and error.count("\n") == 1
