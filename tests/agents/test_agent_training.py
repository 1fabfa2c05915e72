"""The training loop: its length, the check that acting equals learning, the policy that is kept, its state."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from agent_cases import make_trainer, through_a_file

from expire_span_rl.agents import ForgettingConfig, Trainer
from expire_span_rl.agents.guard import TrainingEnded

STEPS, ENVS = 4, 3
ENDLESS = {"min_length": 100, "max_length": 100, "max_steps": 10}  # no door within reach: all end at 10, 20, ... steps
CHECK = "train/acting_learning_difference"


def corridor_trainer(updates: int = 1000, kind: str = "expire_span", seed: int = 0, **settings) -> Trainer:
    """A trainer of tiny updates, one optimiser step each, in which episodes end in update 2, 4, 7, 9, ..."""
    tiny = {"num_steps": STEPS, "num_minibatches": 1, "update_epochs": 1, "env_kwargs": ENDLESS, "seed": seed}
    return make_trainer("Corridor-v0", kind, updates, ENVS, **{**tiny, **settings})


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.policy.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("total, whole", [(1, 12), (24, 24), (25, 36)])
def test_the_total_is_rounded_up_to_whole_rollouts(total, whole):
    """Rollouts of 12 steps; the learning rate falls from update to update as the share of the whole that is done."""
    made = corridor_trainer(learning_rate=0.1, final_learning_rate=0.0)
    trainer = Trainer(made.env, made.policy, made.agent, ForgettingConfig(), total, 0)
    assert (trainer.total_timesteps, trainer.timesteps, trainer.done) == (whole, 0, False)
    rates = []
    while not trainer.done:
        rates.append(trainer.update()["train/learning_rate"])
    assert trainer.timesteps == whole and trainer.updates == whole / 12
    assert rates == pytest.approx([0.1 * (1 - 12 * i / whole) for i in range(whole // 12)])


def test_figures_of_an_update():
    """Counters and live memories: of steps 0..3 and 4..7 of episodes that began together, 1..4 and 5..8 are live."""
    trainer = corridor_trainer()
    first, second, third = trainer.update(), trainer.update(), trainer.update()
    assert [f["time/total_timesteps"] for f in (first, second, third)] == [12, 24, 36]
    assert [f["time/episodes"] for f in (first, second, third)] == [0, 0, ENVS]
    assert (first["memory/live_mean"], first["memory/live_max"]) == (2.5, 4)
    assert (second["memory/live_mean/layer_0"], second["memory/live_max/layer_0"]) == (6.5, 8)
    assert "rollout/success_rate" not in second and third["rollout/success_rate"] == 0
    assert third["rollout/ep_len_mean"] == 10 and third["success/length_quarter_4"] == 0


@pytest.mark.parametrize("kind", ["expire_span", "none"])
def test_acting_is_checked_once_there_is_something_to_check_and_every_50_updates(kind):
    """The first update begins without memory, the second has no episode start; then 2, 52, 102. Rounding only."""
    trainer, checks = corridor_trainer(kind=kind), {}
    for update in range(105):
        figures = trainer.update()
        if CHECK in figures:
            checks[update] = figures[CHECK]
    assert list(checks) == [2, 52, 102] and max(checks.values()) < 1e-4


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            0.1,
            "acting and learning differ: expected outputs within 0.01 of each other, relative to their size, got 0.1 at update 2",
        ),
        (
            float("nan"),
            "the policy's outputs are not finite in environment 0: its observation '.*' has numbers up to [0-9.]+",
        ),
    ],
)
def test_acting_that_differs_from_learning_stops_the_training(error, message, monkeypatch):
    """Values of step() that are off: the error tells, and nothing was learned from them."""
    trainer = corridor_trainer()
    step = trainer.policy.step

    def wrong(*args):
        logits, values = step(*args)
        return logits, values + error

    trainer.update(), trainer.update()
    monkeypatch.setattr(trainer.policy, "step", wrong)
    before = weights(trainer)
    with pytest.raises(TrainingEnded, match=f"^{message}$"):
        trainer.update()
    assert same(before, weights(trainer))


def run_scripted(
    trainer: Trainer, scores: list[float], live: list[float], monkeypatch, is_success: bool = True
) -> list[dict[str, torch.Tensor]]:
    """One update per score and number of live memories, which are dictated; the weights that acted in each."""
    collect, at, acted = trainer.collector.collect, itertools.count(), []

    def dictated():
        rollout, _ = collect()
        i = next(at)
        trainer.collector.live = {"mean": [live[i]], "max": [int(live[i])]}
        acted.append(weights(trainer))
        told = {"return": scores[i], "steps": 10, "length": 10}
        return rollout, [{**told, "is_success": scores[i]} if is_success else told] * 200

    monkeypatch.setattr(trainer.collector, "collect", dictated)
    for _ in scores:
        trainer.update()
    return acted


def test_the_best_policy_is_the_latest_of_about_the_fewest_memories_that_meets_the_constraint(monkeypatch):
    """Update 6: six live memories, as update 3 with its five (up to a fifth more counts as equal), and success. Update
    1 has too little of it, as 4 and 7; update 5 has more memories, as has 8. Kept are the weights that acted, not those
    learned from it, and they are a copy."""
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9))
    scores, live = [0, 0.8, 1, 0.95, 0.7, 0.95, 0.9, 0.1, 1], [9, 3, 8, 5, 2, 6.1, 6, 1, 7]
    acted = run_scripted(trainer, scores, live, monkeypatch)
    assert {name: trainer.best[name] for name in ("live", "score", "timesteps")} == {
        "live": 6, "score": pytest.approx(0.9), "timesteps": 6 * STEPS * ENVS,
    }  # fmt: skip
    assert same(trainer.best["weights"], acted[6]) and not same(acted[6], acted[7])


def test_within_the_budget_the_latest_is_the_best(monkeypatch):
    """Fewer live memories than the budget are no better, and more are worse: of 9, 4, 1, 5 and 5.5 with a budget of 5,
    the fourth."""
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9, memory_budget=5))
    acted = run_scripted(trainer, [1, 1, 1, 1, 1], [9, 4, 1, 5, 5.5], monkeypatch)
    assert trainer.best["live"] == 5 and same(trainer.best["weights"], acted[3])


def test_without_success_the_best_policy_is_one_that_learned(monkeypatch):
    """Returns 10, 20 and 100 of policies with ever more live memories. Those that began with 10 have learned nothing;
    what was good while 20 was the best return is not when it is 100. Kept is the last, though it needs the most."""
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9))
    returns = [10.0] * 2 + [20.0] * 3 + [100.0] * 3
    acted = run_scripted(trainer, returns, [2, 2, 3, 3, 3, 6, 6, 6], monkeypatch, is_success=False)
    assert trainer.best["live"] == 6 and trainer.best["score"] == 100
    assert same(trainer.best["weights"], acted[-1])


@pytest.mark.parametrize("kind, forgetting", [("transformer_xl", True), ("expire_span", False)])
def test_where_nothing_is_forgotten_the_latest_policy_that_meets_the_constraint_is_kept(kind, forgetting, monkeypatch):
    """Never pressed, whatever its success; live memories count for nothing."""
    trainer = corridor_trainer(kind=kind, forgetting=ForgettingConfig(forgetting=forgetting, success_target=0.9))
    acted = run_scripted(trainer, [1, 0.95, 0.2], [3, 7, 1], monkeypatch)
    assert same(trainer.best["weights"], acted[1]) and trainer.best["timesteps"] == STEPS * ENVS
    assert trainer.controller.pressure == 0


def test_spans_are_released_when_the_task_was_learned_once(monkeypatch):
    """Not before; and the run then goes on, is saved, and is loaded as it was, with numbers that are finite."""
    trainer, other = (corridor_trainer(forgetting=ForgettingConfig(success_target=0.9)) for _ in range(2))
    spans = [layer.kind.span for layer in trainer.policy.core.layers]
    run_scripted(trainer, [0.2, 0.8], [5, 5], monkeypatch)
    assert {float(span.released) for span in spans} == {0}
    monkeypatch.undo()
    run_scripted(trainer, [0.95, 0.1], [5, 5], monkeypatch)
    assert {float(span.released) for span in spans} == {1} and trainer.skipped == 0
    other.load_state(*trainer.state())
    assert {float(layer.kind.span.released) for layer in other.policy.core.layers} == {1}


def comparable(figures: dict[str, float]) -> dict[str, float | None]:
    """Without what the clock says; NaN, which equals nothing, as None."""
    clock = ("time/fps", "time/rollout_seconds", "time/update_seconds")
    return {name: None if math.isnan(x) else x for name, x in figures.items() if name not in clock}


def eventful(seed: int) -> Trainer:
    """A trainer of short corridors in which, after a few updates, a policy is kept and the pressure is not 0."""
    easy = ForgettingConfig(success_target=0.05, min_hard_episodes=5)
    short = {"min_length": 3, "max_length": 4, "max_steps": 12}
    return make_trainer(
        "Corridor-v0", "expire_span", 20, 16, seed, forgetting=easy, env_kwargs=short, num_steps=8, update_epochs=2
    )


@pytest.mark.parametrize("own_updates", [0, 2])
def test_a_state_continues_identically(own_updates, tmp_path):
    """Loaded from a file into a trainer of another seed, new or gone its own way: figures and weights, the kept ones
    too, to the bit."""
    trainer, other = eventful(0), eventful(1)
    for _ in range(6):
        trainer.update()
    for _ in range(own_updates):
        other.update()
    assert trainer.best is not None and trainer.controller.pressure != 0
    tensors, figures = through_a_file(trainer.state(), tmp_path)
    assert other.load_state(tensors, figures)
    assert same(other.best["weights"], trainer.best["weights"]) and other.best.keys() == trainer.best.keys()
    for _ in range(3):
        assert comparable(trainer.update()) == comparable(other.update())
    assert same(weights(trainer), weights(other)) and same(trainer.best["weights"], other.best["weights"])
    assert (trainer.timesteps, trainer.last_check) == (other.timesteps, other.last_check)


def test_a_state_without_a_kept_policy_leaves_none(tmp_path):
    trainer, other = eventful(0), eventful(0)
    state = through_a_file(trainer.state(), tmp_path)
    while other.best is None:
        other.update()
    other.load_state(*state)
    assert other.best is None and other.timesteps == 0


def test_a_state_from_before_the_fewest_were_told_apart_continues():
    """Until 24 November 2026 the kept policy had a cost."""
    trainer, other = eventful(0), eventful(1)
    while trainer.best is None:
        trainer.update()
    tensors, figures = trainer.state()
    figures["best"]["cost"] = figures["best"].pop("fewest")
    other.load_state(tensors, figures)
    assert other.best["fewest"] == trainer.best["fewest"]
    other.update()


@pytest.mark.parametrize("name, value", [("score", None), ("timesteps", "x"), ("live", [1]), ("fewest", {})])
def test_a_kept_policy_without_its_figures_is_refused(name, value):
    """A run whose checkpoint says that is told so; it would be found out when the next policy is kept."""
    trainer, other = eventful(0), eventful(1)
    while trainer.best is None:
        trainer.update()
    tensors, figures = trainer.state()
    changed = {**figures, "best": {**figures["best"], name: value}}
    with pytest.raises(TypeError, match="^best: expected numbers, got "):
        other.load_state(tensors, changed)
    del changed["best"][name]
    if name != "fewest":
        with pytest.raises(KeyError, match=name):
            other.load_state(tensors, changed)


def test_success_is_judged_by_as_many_hard_episodes_as_are_asked_for(monkeypatch):
    """More than the default of 100, too."""
    trainer = corridor_trainer(forgetting=ForgettingConfig(min_hard_episodes=300))
    run_scripted(trainer, [1, 1], [5, 4], monkeypatch)  # 200 episodes each
    assert trainer.best["live"] == 4 and trainer.controller.pressure > 0


def test_environments_that_cannot_save_are_told(tmp_path):
    trainers = [make_trainer("ProbeRecall-v0", "expire_span", 5, 4) for _ in range(2)]
    trainers[0].update()
    assert not trainers[1].load_state(*through_a_file(trainers[0].state(), tmp_path))
    assert trainers[1].timesteps == 48 and same(weights(trainers[0]), weights(trainers[1]))
