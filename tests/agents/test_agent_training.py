"""The training loop: its length, the comparison of acting with learning, the kept policy, and the state."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from agent_cases import make_trainer, through_a_file

from expire_span_rl.agents import ForgettingConfig, Trainer, forgetting
from expire_span_rl.agents.collector import Collector
from expire_span_rl.agents.guard import TrainingEnded
from expire_span_rl.agents.schedules import noisy_rollouts
from expire_span_rl.policies.memory.survival_spans import OBSERVING

STEPS = 4
ENVS = 3
ENDLESS = {"min_length": 100, "max_length": 100, "max_steps": 10}
"""Corridors without a door within reach, so that all episodes end after 10 steps."""
CHECK = "train/acting_learning_difference"


def corridor_trainer(updates: int = 1000, kind: str = "expire_span", seed: int = 0, **settings) -> Trainer:
    """A trainer of tiny updates with one optimiser step each. Episodes end in updates 2, 4, 7, 9, ..."""
    tiny = {"num_steps": STEPS, "num_minibatches": 1, "update_epochs": 1, "env_kwargs": ENDLESS}
    return make_trainer("Corridor-v0", kind, updates, num_envs=ENVS, seed=seed, **{**tiny, **settings})


def observe_briefly(monkeypatch) -> None:
    """Spans follow needs after two updates at the first pressure, however short the training is."""
    monkeypatch.setattr(forgetting, "OBSERVED_UPDATES", 0.1)
    monkeypatch.setattr(forgetting, "LONG_TRAINING", 1)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.policy.state_dict().items()}


def is_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("total, whole", [(1, 12), (24, 24), (25, 36)])
def test_the_total_is_rounded_up_to_whole_rollouts(total, whole):
    """Rollouts have 12 steps. The learning rate falls in proportion to the steps that are done."""
    parts = corridor_trainer(learning_rate=0.1, final_learning_rate=0.0)
    trainer = Trainer(parts.env, parts.policy, parts.agent, ForgettingConfig(), total=total, seed=0)
    assert (trainer.total_timesteps, trainer.timesteps, trainer.done) == (whole, 0, False)
    rates = []
    while not trainer.done:
        rates.append(trainer.update()["train/learning_rate"])
    assert trainer.timesteps == whole and trainer.updates == whole / 12
    assert rates == pytest.approx([0.1 * (1 - 12 * i / whole) for i in range(whole // 12)])


def test_metrics_of_an_update():
    """Counters and live memories. All episodes begin together, so that there are 1 to 4 live memories at steps 0 to 3,
    and 5 to 8 at steps 4 to 7."""
    trainer = corridor_trainer()
    updates = [trainer.update() for _ in range(3)]
    assert [metrics["time/total_timesteps"] for metrics in updates] == [12, 24, 36]
    assert [metrics["time/episodes"] for metrics in updates] == [0, 0, ENVS]
    assert (updates[0]["memory/live_mean"], updates[0]["memory/live_max"]) == (2.5, 4)
    assert (updates[1]["memory/live_mean/layer_0"], updates[1]["memory/live_max/layer_0"]) == (6.5, 8)
    assert "rollout/success_rate" not in updates[1] and updates[2]["rollout/success_rate"] == 0
    assert updates[2]["rollout/ep_len_mean"] == 10 and updates[2]["success/length_quarter_4"] == 0


@pytest.mark.parametrize("kind", ["expire_span", "none"])
def test_acting_is_checked_once_there_is_something_to_check_and_every_50_updates(kind):
    """The first update begins without memories, and the second has no episode start. Updates 2, 52 and 102 are checked.
    Their differences are rounding."""
    trainer = corridor_trainer(kind=kind)
    checks = {}
    for update in range(105):
        metrics = trainer.update()
        if CHECK in metrics:
            checks[update] = metrics[CHECK]
    assert list(checks) == [2, 52, 102] and max(checks.values()) < 1e-4


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (0.1, "acting and learning differ: expected outputs within 0.01 of each other, .*, got 0.1 at update 2"),
        (
            float("nan"),
            "the policy's outputs are not finite in environment 0: its observation '.*' has numbers up to [0-9.]+",
        ),
    ],
)
def test_acting_that_differs_from_learning_stops_the_training(error, message, monkeypatch):
    """With wrong values from step(), an error says so, and nothing is learned from them."""
    trainer = corridor_trainer()
    step = trainer.policy.step

    def wrong_step(*args):
        logits, values = step(*args)
        return logits, values + error

    trainer.update()
    trainer.update()
    monkeypatch.setattr(trainer.policy, "step", wrong_step)
    before = weights(trainer)
    with pytest.raises(TrainingEnded, match=f"^{message}$"):
        trainer.update()
    assert is_same(before, weights(trainer))


def test_the_last_tenth_of_a_training_is_without_noise(monkeypatch):
    trainer = corridor_trainer(updates=100)
    collect, told = trainer.collector.collect, []
    monkeypatch.setattr(trainer.collector, "collect", lambda num_noisy: told.append(num_noisy) or collect(num_noisy))
    for rollouts in (0, 89, 90, 99):
        trainer.timesteps = rollouts * trainer.rollout_size
        trainer.update()
    assert told == [90, 1, 0, 0]
    trainer.go_on(20 * trainer.rollout_size)  # the schedules are those of 120 rollouts, the noise is that of 20
    assert trainer.total_timesteps == 120 * trainer.rollout_size
    for rollouts in (100, 117, 118, 119):
        trainer.timesteps = rollouts * trainer.rollout_size
        trainer.update()
    assert told[4:] == [18, 1, 0, 0] and trainer.done


def test_even_the_shortest_training_ends_without_noise():
    assert [noisy_rollouts(0, done, 9, 1) for done in range(9)] == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert noisy_rollouts(0, 0, 1, 1) == 0


@pytest.mark.parametrize(
    ("total", "learning_rate", "expected"), [(100, 0.1, [5, 0]), (100, 0.2, [5, 0]), (135, 0.1, [45, 40])]
)
def test_a_resumed_training_ends_without_noise(total, learning_rate, expected, tmp_path):
    """Saved after 85 of 100 rollouts, and looked at after 85 and 90. Another length makes it a training of the rest,
    another learning rate does not."""
    first = corridor_trainer(updates=100)
    first.timesteps = 85 * first.rollout_size
    second = corridor_trainer(updates=total, learning_rate=learning_rate)
    second.load_state(*through_a_file(first.state(), tmp_path))
    counts = []
    for rollouts in (85, 90):
        second.timesteps = rollouts * second.rollout_size
        counts.append(noisy_rollouts(second.begun, second.timesteps, second.total_timesteps, second.rollout_size))
    third = corridor_trainer(updates=total, learning_rate=learning_rate)
    third.load_state(*through_a_file(second.state(), tmp_path))
    assert third.begun == second.begun
    assert counts == expected


def test_the_controller_is_told_when_noise_ends_and_returns():
    trainer = corridor_trainer(updates=10)
    trainer.timesteps = 9 * trainer.rollout_size
    trainer.update()
    assert trainer.controller.best_with_noise is not None
    trainer.window.hard.extend([{"length": 100, "is_success": True}] * 50)
    trainer.go_on(10 * trainer.rollout_size)
    trainer.update()
    assert trainer.controller.best_with_noise is None and not any(e["is_success"] for e in trainer.window.hard)


def run_updates(
    trainer: Trainer, episodes: list[list[dict]], live: list[float], monkeypatch, long_after: float = math.inf
) -> list[dict]:
    """One update for each list of episodes that end in it, and number of live memories, which replace the measured
    ones. long_after: of the trainer's window. By default no episode takes long, so that no policy is on trial. Returns
    the weights that acted in each update."""
    monkeypatch.setattr(trainer.window, "long_after", lambda: long_after)
    collect = trainer.collector.collect
    updates = itertools.count()
    acting_weights = []

    def scripted_collect(num_noisy):
        rollout, _ = collect()
        i = next(updates)
        trainer.collector.live = {"mean": [live[i]], "max": [int(live[i])]}
        acting_weights.append(weights(trainer))
        return rollout, episodes[i]

    monkeypatch.setattr(trainer.collector, "collect", scripted_collect)
    for _ in live:
        trainer.update()
    return acting_weights


def run_scripted(
    trainer: Trainer, scores: list[float], live: list[float], monkeypatch, is_success: bool = True
) -> list[dict[str, torch.Tensor]]:
    """`run_updates` with 200 short episodes of each score."""
    episode = {"steps": trainer.agent.config.num_steps, "length": 10}
    success = [{"is_success": score} if is_success else {} for score in scores]
    episodes = [[{**episode, "return": score, **entry}] * 200 for score, entry in zip(scores, success, strict=True)]
    return run_updates(trainer, episodes, live, monkeypatch)


def test_the_best_policy_is_the_latest_successful_one_with_about_the_fewest_memories(monkeypatch):
    """It is the one of update 6, with six live memories. Update 3 has five, and up to a fifth more counts as equal.
    Updates 1, 4 and 7 have too little success, and updates 5 and 8 more memories. The kept weights are those that
    acted in the update, not those that it learned, and they are a copy."""
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9))
    scores = [0, 0.8, 1, 0.95, 0.7, 0.95, 0.9, 0.1, 1]
    live = [9, 3, 8, 5, 2, 6.1, 6, 1, 7]
    acting_weights = run_scripted(trainer, scores, live, monkeypatch)
    assert {name: getattr(trainer.best, name) for name in ("live", "score", "timesteps")} == {
        "live": 6, "score": pytest.approx(0.9), "timesteps": 6 * STEPS * ENVS,
    }  # fmt: skip
    assert is_same(trainer.best.weights, acting_weights[6]) and not is_same(acting_weights[6], acting_weights[7])


def test_within_the_budget_the_latest_is_the_best(monkeypatch):
    """Fewer live memories than the budget are no better, and more are worse. Of 9, 4, 1, 5 and 5.5 with a budget of 5,
    the fourth is kept."""
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9, memory_budget=5))
    acting_weights = run_scripted(trainer, [1, 1, 1, 1, 1], [9, 4, 1, 5, 5.5], monkeypatch)
    assert trainer.best.live == 5 and is_same(trainer.best.weights, acting_weights[3])


def test_without_success_the_best_policy_is_one_that_learned(monkeypatch):
    """Policies with returns of 10, 20 and 100 have more and more live memories. Those with the first return, 10, have
    learned nothing. A return of 20 no longer meets the target when the best return is 100. The last policy is kept,
    although it needs the most memories."""
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9))
    returns = [10.0] * 2 + [20.0] * 3 + [100.0] * 3
    acting_weights = run_scripted(trainer, returns, [2, 2, 3, 3, 3, 6, 6, 6], monkeypatch, is_success=False)
    assert trainer.best.live == 6 and trainer.best.score == 100
    assert is_same(trainer.best.weights, acting_weights[-1])


def run_together(trainer: Trainer, scores: dict[int, float], live: list[float], monkeypatch) -> list[dict]:
    """`run_updates` with 200 episodes of four rollouts each, which end in the updates of `scores` only, all at once."""
    episode = {"return": 1.0, "steps": 4 * trainer.agent.config.num_steps, "length": 10}
    episodes = [[{**episode, "is_success": scores[i]}] * 200 if i in scores else [] for i in range(len(live))]
    return run_updates(trainer, episodes, live, monkeypatch)


def test_where_episodes_end_together_memories_are_counted_over_whole_episodes(monkeypatch):
    """Few memories at the start of all episodes are no merit. The kept policy is the latest, since over four rollouts
    all have as many."""
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9))
    acting_weights = run_together(trainer, {3: 1.0, 7: 1.0, 11: 1.0}, [1, 3, 5, 7] * 3, monkeypatch)
    assert trainer.best.live == 4 and is_same(trainer.best.weights, acting_weights[-1])
    assert trainer.window.mean_live(trainer.agent.config.num_steps) == 4


def test_with_actors_memories_are_counted_over_whole_episodes_of_each(monkeypatch):
    """As above, with two actors whose rollouts come in turn."""
    monkeypatch.setattr(Collector, "num_actors", 2)
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9))
    live = [1, 1, 3, 3, 5, 5, 7, 7] * 2
    acting_weights = run_together(trainer, {7: 1.0, 15: 1.0}, live, monkeypatch)
    assert trainer.best.live == 4 and is_same(trainer.best.weights, acting_weights[-1])


def test_after_spans_are_released_memories_are_counted_over_a_whole_episode_first(monkeypatch):
    """Episodes are four rollouts long, and spans are released after update 3. The policy kept before, of 2 memories, is
    no measure any more. Those of the next four rollouts began with bounded spans, and still grow."""
    monkeypatch.setattr(forgetting, "OBSERVED_UPDATES", 0.45)
    live = [2, 2, 2, 2, 3, 5, 7, 9, 9, 9, 9, 9]
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9))
    scores = dict.fromkeys(range(len(live)), 1.0)
    acting_weights = run_together(trainer, scores, live, monkeypatch)
    assert trainer.best.released and trainer.best.live == 9
    assert is_same(trainer.best.weights, acting_weights[-1])
    monkeypatch.undo()
    monkeypatch.setattr(forgetting, "OBSERVED_UPDATES", 0.45)
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9))
    run_together(trainer, scores, live[:-1], monkeypatch)
    assert not trainer.best.released and trainer.best.live == 2


def test_a_policy_that_no_episode_has_tested_is_dropped_if_the_next_ones_fail(monkeypatch):
    """The policies of updates 4 to 6 have ever fewer memories. The episodes that end in update 7 fail, so none of them
    is kept. Those that end in update 11 succeed."""
    live = [9, 9, 9, 9, 8, 7, 6, 5, 5, 5, 5, 5]
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9))
    run_together(trainer, {3: 1.0}, live[:7], monkeypatch)
    assert trainer.best.timesteps == 6 * STEPS * ENVS and not trainer.best.tested
    monkeypatch.undo()
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9))
    run_together(trainer, {3: 1.0, 7: 0.2}, live[:8], monkeypatch)
    assert trainer.best is None
    monkeypatch.undo()
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9))
    acting_weights = run_together(trainer, {3: 1.0, 7: 0.2, 11: 1.0}, live, monkeypatch)
    assert trainer.best.tested and is_same(trainer.best.weights, acting_weights[11])


@pytest.mark.parametrize("window, live", [(100, 3.0), (200, 50.0)])
def test_a_setback_leaves_the_policy_whose_score_was_its_own(window, live, tmp_path, monkeypatch):
    """Spans follow needs, and 3 memories are live, until the return falls. Then all spans are long again, and 50 are
    live. Of 200 episodes in an update, those that began in it are more than 100. If the score counts 200, earlier
    policies played a part of some, so that what went wrong may not show in it."""
    observe_briefly(monkeypatch)
    config = ForgettingConfig(success_target=0.9, min_hard_episodes=window)
    trainer = corridor_trainer(forgetting=config)
    trainer.controller.has_waited = True
    with monkeypatch.context() as patch:
        run_scripted(trainer, [10, 100, 100, 100, 100], [9, 9, 3, 3, 3], patch, is_success=False)
    assert trainer.best.released and trainer.best.live == 3
    loaded = corridor_trainer(forgetting=config)
    loaded.load_state(*through_a_file(trainer.state(), tmp_path))
    with monkeypatch.context() as patch:
        run_scripted(loaded, [*[20] * 10, 100, 100], [*[3] * 10, 50, 50], patch, is_success=False)
    assert loaded.controller.setbacks == 1 and loaded.policy.unreleased_reach() is not None
    assert loaded.best.live == live and loaded.best.released == (live == 3)
    assert (loaded.unfinished() is None) == loaded.best.released
    for says_difficulty, kept in ((False, live), (True, 50.0)):  # of harder episodes the score says nothing
        again = corridor_trainer(forgetting=config)
        again.load_state(*through_a_file(loaded.state(), tmp_path))
        again.window.has_difficulty = says_difficulty
        with monkeypatch.context() as patch:
            run_updates(again, [[{"steps": 12, "length": 20, "return": 100.0}] * 200], [50.0], patch)
        assert again.best.live == kept


@pytest.mark.parametrize("kind, forgetting", [("transformer_xl", True), ("expire_span", False)])
def test_where_nothing_is_forgotten_the_latest_policy_that_meets_the_constraint_is_kept(kind, forgetting, monkeypatch):
    """There is no pressure, whatever the success is. Live memories do not matter."""
    trainer = corridor_trainer(kind=kind, forgetting=ForgettingConfig(forgetting=forgetting, success_target=0.9))
    acting_weights = run_scripted(trainer, [1, 0.95, 0.2], [3, 7, 1], monkeypatch)
    assert is_same(trainer.best.weights, acting_weights[1]) and trainer.best.timesteps == STEPS * ENVS
    assert trainer.controller.pressure == 0


@pytest.mark.parametrize("kind, forgetting", [("gru", True), ("transformer_xl", True), ("expire_span", False)])
def test_by_its_return_the_best_policy_is_kept_where_nothing_is_forgotten(kind, forgetting, monkeypatch):
    """The policies whose return was 100 and 99 meet the target, 90% of the way from 10 to 100. Later ones, of which
    some have learned nothing any more, do not. There is no pressure, and spans stay as they are."""
    trainer = corridor_trainer(kind=kind, forgetting=ForgettingConfig(forgetting=forgetting, success_target=0.9))
    returns = [10.0, 40.0, 100.0, 99.0, 60.0, 10.0]
    acting_weights = run_scripted(trainer, returns, [1.0] * 6, monkeypatch, is_success=False)
    assert trainer.best.score == 99 and is_same(trainer.best.weights, acting_weights[3])
    assert trainer.controller.pressure == 0 and not trainer.controller.needs_known
    reach = trainer.policy.unreleased_reach()
    assert (reach is not None) == (kind == "expire_span") and trainer.unfinished() is None


def test_spans_are_released_when_the_task_was_learned_and_needs_were_observed(monkeypatch):
    """They are not released before. The run then goes on with finite numbers, and its state is saved and loaded."""
    observe_briefly(monkeypatch)
    trainer, loaded = (corridor_trainer(forgetting=ForgettingConfig(success_target=0.9)) for _ in range(2))
    spans = [layer.kind.span for layer in trainer.policy.core.layers]
    run_scripted(trainer, [0.2, 0.8], [5, 5], monkeypatch)
    assert {float(span.released) for span in spans} == {0}
    reach = spans[0].initial_limit + spans[0].config.ramp
    nothing = f"memories were not shortened, each lasts {reach:,.0f} steps: "
    assert trainer.unfinished() == f"{nothing}success in the latest hard episodes is 80.0%, the target 90.0%"
    monkeypatch.undo()
    observe_briefly(monkeypatch)
    run_scripted(trainer, [0.95], [5], monkeypatch)
    monkeypatch.undo()
    observe_briefly(monkeypatch)
    assert {float(span.released) for span in spans} == {OBSERVING}
    assert trainer.unfinished() == (
        f"{nothing}how long they are needed is watched first, 50% of that is done since the task was learned; a longer "
        "training goes on from there"
    )
    assert {float(span(torch.zeros(1, 1, 64))) for span in spans} == {spans[0].initial_limit}
    run_scripted(trainer, [0.95, 0.1], [5, 5], monkeypatch)
    assert {float(span.released) for span in spans} == {1} and trainer.skipped == 0
    assert trainer.unfinished() is None
    loaded.load_state(*trainer.state())
    assert {float(layer.kind.span.released) for layer in loaded.policy.core.layers} == {1}


def test_spans_are_bound_again_where_the_return_falls(monkeypatch):
    """Not in a policy that came with spans that follow needs, nor before they do. What time trials found stays true."""
    trainer = corridor_trainer(updates=30, forgetting=ForgettingConfig(success_target=0.9))
    policy, controller = trainer.policy, trainer.controller

    def released() -> set[float]:
        return {float(layer.kind.span.released) for layer in policy.core.layers}

    def play(*returns: float) -> None:
        with monkeypatch.context() as patch:
            run_scripted(trainer, list(returns), [5.0] * len(returns), patch, is_success=False)

    observe_briefly(monkeypatch)
    policy.release_spans()
    play(0.0, 1.0, 0.1)
    assert released() == {1.0} and not controller.needs_known
    policy.bind_spans()
    play(0.1)
    assert released() == {OBSERVING}
    controller.is_flat, controller.has_waited = True, True
    play(1.0, 1.0, 1.0)
    assert released() == {1.0} and controller.needs_known
    play(*[0.1] * 9)
    assert released() == {1.0} and controller.needs_known
    trainer.window.live.extend([7.0] * 5)
    play(0.1)
    assert released() == {OBSERVING} and not trainer.window.live
    assert trainer.best.released and trainer.unfinished() is None
    trainer.judge.keeper.kept = None
    assert "since memories were last shortened and the return fell" in str(trainer.unfinished())
    trainer.judge.time_trial.is_over = True
    play(*[1.0] * 8)
    assert released() == {2.0}


@pytest.mark.parametrize("kind", ["transformer_xl", "gru", "none"])
def test_a_memory_without_spans_leaves_no_forgetting_unfinished(kind):
    trainer = make_trainer("Corridor-v0", kind, 1, num_envs=2, forgetting=ForgettingConfig())
    assert trainer.unfinished() is None


def comparable(metrics: dict[str, float]) -> dict[str, float | None]:
    """The metrics without measured times. NaN, which equals nothing, becomes None."""
    times = ("time/fps", "time/rollout_seconds", "time/update_seconds")
    return {name: None if math.isnan(x) else x for name, x in metrics.items() if name not in times}


def short_trainer(seed: int) -> Trainer:
    """A trainer of short corridors. After a few updates a policy is kept and the pressure is not 0."""
    easy = ForgettingConfig(success_target=0.05, min_hard_episodes=5)
    short = {"min_length": 3, "max_length": 4, "max_steps": 12}
    return make_trainer(
        "Corridor-v0",
        "expire_span",
        20,
        num_envs=16,
        seed=seed,
        forgetting=easy,
        env_kwargs=short,
        num_steps=8,
        update_epochs=2,
    )


@pytest.mark.parametrize("updates_before", [0, 2])
def test_a_state_continues_identically(updates_before, tmp_path):
    """Through a file into a trainer of another seed, new or after updates of its own. Metrics and weights are the same
    to the bit, and so are the kept weights."""
    trainer = short_trainer(0)
    loaded = short_trainer(1)
    for _ in range(6):
        trainer.update()
    for _ in range(updates_before):
        loaded.update()
    assert trainer.best is not None and trainer.controller.pressure != 0
    assert loaded.load_state(*through_a_file(trainer.state(), tmp_path))
    assert is_same(loaded.best.weights, trainer.best.weights)
    assert replace(loaded.best, weights={}) == replace(trainer.best, weights={})
    for _ in range(3):
        assert comparable(trainer.update()) == comparable(loaded.update())
    assert is_same(weights(trainer), weights(loaded)) and is_same(trainer.best.weights, loaded.best.weights)
    assert (trainer.timesteps, trainer.last_check) == (loaded.timesteps, loaded.last_check)


def test_a_state_without_a_kept_policy_leaves_none(tmp_path):
    trainer = short_trainer(0)
    loaded = short_trainer(0)
    state = through_a_file(trainer.state(), tmp_path)
    while loaded.best is None:
        loaded.update()
    loaded.load_state(*state)
    assert loaded.best is None and loaded.timesteps == 0


def test_a_state_with_the_cost_of_earlier_versions_continues():
    """Until 24 November 2026 the fewest live memories were saved as the cost."""
    trainer = short_trainer(0)
    loaded = short_trainer(1)
    while trainer.best is None:
        trainer.update()
    tensors, metadata = trainer.state()
    metadata["best"]["cost"] = metadata["best"].pop("fewest")
    loaded.load_state(tensors, metadata)
    assert loaded.best.fewest == trainer.best.fewest
    loaded.update()


@pytest.mark.parametrize("name, value", [("score", None), ("timesteps", "x"), ("live", [1]), ("fewest", {})])
def test_a_kept_policy_without_its_metrics_is_refused(name, value):
    """Otherwise the run would fail when the next policy is kept."""
    trainer = short_trainer(0)
    loaded = short_trainer(1)
    while trainer.best is None:
        trainer.update()
    tensors, metadata = trainer.state()
    changed = {**metadata, "best": {**metadata["best"], name: value}}
    with pytest.raises(TypeError, match="^best: expected numbers, got "):
        loaded.load_state(tensors, changed)
    del changed["best"][name]
    if name != "fewest":
        with pytest.raises(KeyError, match=name):
            loaded.load_state(tensors, changed)


def test_success_is_measured_over_the_set_number_of_hard_episodes(monkeypatch):
    """The number may exceed the default of 100."""
    trainer = corridor_trainer(forgetting=ForgettingConfig(min_hard_episodes=300))
    run_scripted(trainer, [1, 1], [5, 4], monkeypatch)  # 200 episodes each
    assert trainer.best.live == 4 and trainer.controller.pressure > 0


@pytest.mark.parametrize("is_success, rates", [(True, [1.0, 0.75, 0.0]), (False, [1.0, 1.0, 1.0])])
def test_the_learner_is_told_the_share_of_failures(is_success, rates, monkeypatch):
    """Of the latest 200 hard episodes. Until they have ended, and where no success is reported, it is 1."""
    trainer = corridor_trainer(forgetting=ForgettingConfig(min_hard_episodes=200))
    told: list[float] = []
    update = trainer.agent.update
    monkeypatch.setattr(trainer.agent, "update", lambda *args: told.append(trainer.agent.failure_rate) or update(*args))
    episode = {"steps": 12, "length": 10, "return": 0.0}
    scores = [[0.0] * 150, [0.0] * 150 + [1.0] * 50, [1.0] * 200]
    episodes = [[{**episode, **({"is_success": s} if is_success else {})} for s in each] for each in scores]
    run_updates(trainer, episodes, [5, 5, 5], monkeypatch)
    assert told == rates


def test_a_harder_episode_than_any_before_leaves_what_is_known(tmp_path, monkeypatch):
    """It is the only hard one at first. The share of failures stays as it was, also in a resumed training; spans are
    not shortened, and the kept policy, which no hard episode has tested, stays."""
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9, min_hard_episodes=100))
    easy, hard = ({"steps": 12, "length": length, "return": 0.0, "is_success": 1.0} for length in (10, 20))
    with monkeypatch.context() as patch:
        run_updates(trainer, [[easy] * 200, [easy] * 200, [], [hard]], [5.0] * 4, patch)
    assert trainer.agent.failure_rate == 0 and trainer.controller.pressure == 0
    assert trainer.best is not None and not trainer.best.tested and trainer.best.timesteps == 2 * STEPS * ENVS
    loaded = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9, min_hard_episodes=100))
    loaded.load_state(*through_a_file(trainer.state(), tmp_path))
    run_updates(loaded, [[hard]], [5.0], monkeypatch)
    assert loaded.agent.failure_rate == 0
    run_updates(trainer, [[{**hard, "is_success": 0.0}] * 100] * 3, [5.0] * 3, monkeypatch)
    assert trainer.agent.failure_rate == 1 and trainer.best is None and trainer.controller.pressure < 0


def test_environments_that_cannot_save_are_reported(tmp_path):
    trainers = [make_trainer("ProbeRecall-v0", "expire_span", 5, num_envs=4) for _ in range(2)]
    trainers[0].update()
    assert not trainers[1].load_state(*through_a_file(trainers[0].state(), tmp_path))
    assert trainers[1].timesteps == 48 and is_same(weights(trainers[0]), weights(trainers[1]))


def test_a_policy_kept_for_its_return_does_not_stand_for_success(monkeypatch):
    """Where the environment reports success in later episodes only."""
    trainer = corridor_trainer(forgetting=ForgettingConfig(success_target=0.9))
    run_scripted(trainer, [2.0, 3.4, 3.4], [5, 5, 5], monkeypatch, is_success=False)
    assert trainer.best is not None and not trainer.best.is_success
    monkeypatch.undo()
    run_scripted(trainer, [0.2], [50], monkeypatch)
    assert trainer.best is None
    monkeypatch.undo()
    run_scripted(trainer, [1.0], [50], monkeypatch)
    assert trainer.best is not None and trainer.best.score == 1
