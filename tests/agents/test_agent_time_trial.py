"""The comparison of environments with and without skipped time, and what follows from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from agent_cases import make_trainer, through_a_file

from expire_span_rl.agents import ForgettingConfig, forgetting, time_trial
from expire_span_rl.agents.time_trial import KEPT, LARGEST_LOSS, SETTLED, TimeTrial
from expire_span_rl.protocols import CONTROL_EVERY


def trial_of(others: list[float], controls: list[float], updates: int = SETTLED) -> TimeTrial:
    """A trial with the same episodes in every update."""
    trial = TimeTrial()
    for _ in range(updates):
        trial.add([(score, False) for score in others] + [(score, True) for score in controls])
    return trial


def test_a_large_loss_ends_the_trial_once_a_policy_could_settle():
    """Without noise the loss alone decides: 0.05 of the gain may be lost."""
    assert trial_of([0.8], [1.0]).is_harmful(1.0)
    assert not trial_of([0.8], [1.0], SETTLED - 1).is_harmful(1.0)
    assert not trial_of([0.96], [1.0]).is_harmful(1.0) and trial_of([0.96], [1.0]).is_harmful(0.5)
    assert not trial_of([1.0], [0.8]).is_harmful(1.0)  # skipping helps
    assert trial_of([0.8], [1.0]).loss == pytest.approx(0.2)


@pytest.mark.parametrize(("others", "controls"), [([0.5], []), ([], [0.5]), ([], [])])
def test_a_group_without_episodes_says_nothing(others, controls):
    trial = trial_of(others, controls)
    assert trial.loss is None and not trial.is_harmful(0.0)


def test_one_episode_of_a_group_is_not_certain():
    trial = trial_of([0.5, 0.4], [], 60)
    trial.add([(9.0, True)])
    assert trial.loss is not None and trial.loss > 8 and not trial.is_harmful(1.0)


def test_the_error_is_that_of_two_means_of_one_distribution():
    """By hand: weights of KEPT**2, KEPT and 1, one episode of a group in each update."""
    trial = TimeTrial()
    others, controls = [1.0, 2.0, 4.0], [3.0, 7.0, 1.0]
    errors = []
    for other, control in zip(others, controls, strict=True):
        trial.add([(other, False), (control, True)])
        errors.append(trial._error)
    assert errors[:2] == [math.inf, math.inf]  # fewer than two equally weighted episodes
    weights = np.array([KEPT**2, KEPT, 1.0]) / (1 + KEPT + KEPT**2)
    mean = weights @ (np.array(others) + controls) / 2
    variance = weights @ ((others - mean) ** 2 + (controls - mean) ** 2) / 2
    assert errors[2] == pytest.approx(math.sqrt(variance * 2 * (weights**2).sum()))
    assert trial.loss == pytest.approx(weights @ controls - weights @ others)


def test_chance_ends_no_trial():
    """Twenty trials of a thousand updates without a loss, with noisy scores and one control each: none ends."""
    generator = np.random.default_rng(0)
    for share in (0.7, 0.95) * 10:
        trial = TimeTrial()
        for _ in range(1000):
            scores = generator.random(8) < share
            trial.add([(float(score), row == 0) for row, score in enumerate(scores)])
            assert not trial.is_harmful(0.0)


def trainer_of_short_corridors():
    easy = ForgettingConfig(success_target=0.05, min_hard_episodes=5)
    short = {"min_length": 3, "max_length": 4, "max_steps": 12}
    envs = 2 * CONTROL_EVERY
    return make_trainer(
        "Corridor-v0", "expire_span", 40, num_envs=envs, forgetting=easy, env_kwargs=short, num_steps=8, seed=0
    )


def test_no_time_is_skipped_once_that_is_known_to_harm(monkeypatch, tmp_path):
    """Episodes of one environment in eight are controls. After the trial no row has its time skipped, what it cost is
    no longer reported, and a saved state continues so."""
    monkeypatch.setattr(forgetting, "OBSERVED_UPDATES", 0.1)
    monkeypatch.setattr(time_trial, "SETTLED", 3)
    seen = []
    monkeypatch.setattr(
        TimeTrial, "add", lambda trial, episodes: seen.append(list(episodes)) or setattr(trial, "updates", 9)
    )
    trainer, loaded = trainer_of_short_corridors(), trainer_of_short_corridors()
    while not seen:
        trainer.update()
    while sum(map(len, seen)) < 100:
        trainer.update()
    episodes = [episode for update in seen for episode in update]
    assert 0 < sum(is_control for _, is_control in episodes) < len(episodes) / 2
    assert {score for score, _ in episodes} <= {0.0, 1.0}
    count = len(seen)
    with monkeypatch.context() as last_tenth:  # no time is skipped in it: nothing to compare
        last_tenth.setattr(trainer.schedules, "noisy_rollouts", lambda *steps: 0)
        assert "memory/skipped_time_loss" not in trainer.update() and len(seen) == count
    policy = trainer.policy
    assert policy.can_skip_time

    def skipped() -> torch.Tensor:
        memory = policy.initial_memory(800)
        return policy.draw(memory, torch.Generator().manual_seed(0)).time - memory.time

    assert skipped().any() and not skipped()[CONTROL_EVERY - 1 :: CONTROL_EVERY].any()
    trainer.judge.time_trial.sums[:] = [[100, 100, 50, 50], [100, 100, 100, 100]]
    assert trainer.update()["memory/skipped_time_loss"] == pytest.approx(0.5)
    assert trainer.judge.time_trial.is_over and not skipped().any()
    count = len(seen)
    assert "memory/skipped_time_loss" not in trainer.update() and len(seen) == count
    policy.release_spans()
    assert not skipped().any()
    loaded.load_state(*through_a_file(trainer.state(), tmp_path))
    trials = [each.judge.time_trial for each in (loaded, trainer)]
    assert trials[0].is_over and trials[0].state_dict() == trials[1].state_dict()
    assert {float(layer.kind.span.released) for layer in loaded.policy.core.layers} == {2.0}


def test_a_small_loss_ends_nothing():
    trial = trial_of([1 - LARGEST_LOSS / 2], [1.0], 500)
    assert not trial.is_harmful(1.0)


def test_states():
    trial = trial_of([0.8], [1.0], 5)
    again = TimeTrial()
    again.load_state_dict(trial.state_dict())
    assert again.state_dict() == trial.state_dict() and again.loss == trial.loss
    with pytest.raises(ValueError, match=r"^time trial: expected sums \(2, 4\), got \(1, 4\)$"):
        again.load_state_dict({**trial.state_dict(), "sums": [[1, 2, 3, 4]]})
