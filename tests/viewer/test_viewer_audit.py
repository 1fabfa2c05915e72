"""The audit against acting with memories removed by hand, and what it finds in the shipped policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from viewer_cases import SHIPPED, STORING, make_policy, play_steps

from expire_span_rl.envs import make_env, make_vec_env
from expire_span_rl.envs.corridor import Corridor
from expire_span_rl.envs.switch import Switch
from expire_span_rl.policies import as_tensors, load_policy
from expire_span_rl.policies.transformer.slots import GONE
from expire_span_rl.viewer.audit import EFFECTS, audit, decisions, emptied, most_attended, table
from expire_span_rl.viewer.play import Episode, look, play, tensors_of
from expire_span_rl.viewer.record import MIN_WEIGHT, record
from expire_span_rl.viewer.replay import replay

SLOTS = ["expire_span", "transformer_xl", "adaptive_span"]  # kinds that merge no slots


def chances(logits: torch.Tensor) -> np.ndarray:
    return torch.softmax(logits.double(), -1).numpy()


def by_hand(policy, episode: Episode, change, images=None) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [T,A] and values [T] of acting in one piece. `change(t, acting)` changes its buffers before each
    step."""
    logits, values = logits_by_hand(policy, episode, change, images)
    return chances(logits), values


def logits_by_hand(policy, episode: Episode, change, images=None) -> tuple[torch.Tensor, np.ndarray]:
    """The same with logits."""
    observations = tensors_of(policy, episode.observations)
    if images is not None:
        observations["image"] = images
    acting = policy.begin(policy.initial_memory(1), len(episode.actions))
    outputs = []
    for t in range(len(episode.actions)):
        change(t, acting)
        outputs.append(policy.step({k: v[t] for k, v in observations.items()}, acting, torch.tensor([t == 0])))
    return torch.cat([logits for logits, _ in outputs]), torch.cat([values for _, values in outputs]).numpy()


@pytest.mark.parametrize("kind", STORING)
def test_a_replay_from_anywhere_is_what_was_played(kind):
    policy = make_policy(kind)
    episode = play_steps(policy, 40)
    assert sorted(episode.memories) == [0, 16, 32]
    for first in episode.memories:
        rest = tensors_of(policy, episode.observations[first:])
        memory = episode.memories[first]
        for t, logits, values, before in replay(policy, rest, memory, first, memories_before=[35]):
            np.testing.assert_allclose(chances(logits)[0], episode.marginals[t], atol=1e-5)
            assert float(values) == pytest.approx(episode.values[t], abs=1e-4)
            assert (before is not None) == (t == 35)


def swapped_world(policy, episode: Episode):
    """(images in which the fact 5 shows its counterpart, `swap` from an image to its counterpart)."""
    real = tensors_of(policy, episode.observations)["image"]
    counterparts = torch.as_tensor(Corridor.swap_observation(real.numpy()))
    counterparts[::11, ..., 0] = (counterparts[::11, ..., 0] + 3) % 9  # so that every swap changes something
    images = torch.where(torch.as_tensor(episode.facts == 5)[:, None, None, None, None], counterparts, real)
    known = {real[t].numpy().tobytes(): counterparts[t].numpy() for t in range(0, len(real), 11)}

    def swap(image: np.ndarray) -> np.ndarray:
        """[..., V, V, 3]"""
        flat = image.reshape(-1, *image.shape[-3:])
        return np.stack([known.get(i.tobytes(), i[None])[0] for i in flat]).reshape(image.shape)

    return images, swap


def clear_slot(birth: int, at: int, layers):
    """A change that removes the slot of step `birth` from the layers, before step `at`."""

    def change(now, acting):
        if now == at:
            for i in layers:
                acting.layers[i].slots.position[0, birth] = GONE

    return change


def replace_slot(policy, birth: int, at: int, layer: int, hidden: torch.Tensor):
    """A change that writes `hidden` [D] into a slot of one layer, before step `at`."""

    def change(now, acting):
        if now == at:
            slots = acting.layers[layer].slots
            made = policy.core.layers[layer].write(hidden[None, None], acting.noise)
            slots.keys[0, :, birth], slots.values[0, :, birth] = made.keys[0, :, 0], made.values[0, :, 0]
            if slots.slot_features is not None:
                slots.slot_features[0, birth] = made.slot_features[0, 0]

    return change


@pytest.mark.parametrize("kind", SLOTS)
def test_every_effect_equals_acting_with_the_slots_changed_by_hand(kind):
    policy = make_policy(kind)
    episode = play_steps(policy, 30)
    episode = replace(episode, decisions=np.isin(np.arange(30), [7, 20, 29]), facts=np.where(np.arange(30) % 11, -1, 5))
    images, swap = swapped_world(policy, episode)
    rows = audit(policy, episode, look(policy, episode), 3, swap=swap)["memories"]
    assert len(rows) == 9 and {row["step"] for row in rows} == {7, 20, 29}
    hidden = {}  # (layer, step) -> the slot's vector in the swapped episode

    def remember(t, acting):
        for i, layer in enumerate(acting.layers):
            if t:
                hidden[i, t - 1] = layer.hidden[0, t - 1].clone()

    total_swapped = by_hand(policy, episode, remember, images)
    for row in rows:
        t, layer, birth = row["step"], row["layer"], row["written"]
        swap_slot = replace_slot(policy, birth, t, layer, hidden[layer, birth])
        expected = {
            "direct_removed": by_hand(policy, episode, clear_slot(birth, t, [layer])),
            "direct_swapped": by_hand(policy, episode, swap_slot),
            "total_removed": by_hand(policy, episode, clear_slot(birth, birth + 1, [0, 1])),
            "total_swapped": total_swapped,
        }
        for name, (probabilities, values) in expected.items():
            np.testing.assert_allclose(row[name]["probabilities"], probabilities[t], atol=2e-4, err_msg=name)
            assert row[name]["value"] == pytest.approx(values[t], abs=2e-3)
            shift = abs(probabilities[t] - episode.marginals[t]).sum() / 2
            assert row[name]["shift"] == pytest.approx(shift, abs=2e-4)
            assert row[name]["action"] == probabilities[t].argmax()
            assert row[name]["value_change"] == pytest.approx(values[t] - episode.values[t], abs=2e-3)
    assert any(row[name]["shift"] > 0.01 for row in rows for name in EFFECTS)


def test_influence_is_the_shift_when_the_episode_begins_anew():
    policy = make_policy()
    episode = play_steps(policy, 12)
    for t, shift in enumerate(audit(policy, episode, [], 0, swap=None)["influence"]):
        fresh = policy.begin(policy.initial_memory(1), 1)
        now = {key: value[0] for key, value in tensors_of(policy, episode.observations[t : t + 1]).items()}
        logits, _ = policy.step(now, fresh, torch.tensor([True]))
        assert shift == pytest.approx(abs(chances(logits)[0] - episode.marginals[t]).sum() / 2, abs=6e-5)  # four digits
    none = make_policy("none")
    np.testing.assert_allclose(audit(none, play_steps(none, 12), [], 0, swap=None)["influence"], 0, atol=1e-5)


def test_an_empty_memory_changes_the_action_where_the_probabilities_say_so():
    policy = make_policy("gru")
    episode = play_steps(policy, 12)
    params = emptied(policy, episode).double()
    params[5] *= -1  # there the agent preferred what it would like least with an empty memory
    told = audit(policy, replace(episode, params=params), [], 1, swap=None)
    assert np.flatnonzero(told["changes_action"]).tolist() == [5]


def test_decisions_are_the_environments_or_the_peaks_of_influence():
    episode = play_steps(make_policy(), 8)
    named = replace(episode, decisions=np.isin(np.arange(8), [2, 5]))
    assert decisions(named, np.zeros(8)) == [2, 5]
    unnamed = replace(episode, decisions=None)
    assert decisions(unnamed, np.array([0, 0.3, 0.2, 0.2, 0.9, 0.05, 0.07, 0])) == [1, 4]
    assert decisions(unnamed, np.full(8, 0.09)) == []
    assert decisions(unnamed, np.tile([0.5, 0], 4)) == [0, 2, 4, 6]


def test_the_most_attended_are_ranked_over_all_layers_without_the_present():
    policy = make_policy()
    lives = look(policy, play_steps(policy, 12))
    memories = most_attended(lives, 10, 4)
    weights = []
    for life in lives:
        births, attention = life.attention[10]
        weights += attention.max(0)[births < 10].tolist()
    assert [weight for *_, weight in memories] == sorted(weights, reverse=True)[:4]
    assert all(birth < 10 for _, birth, _ in memories)


def test_diffuse_attention_is_audited_although_no_weight_is_large_enough_to_be_shown():
    policy = make_policy("transformer_xl", settings={"window": 400}, min_length=400, max_length=400)
    for layer in policy.core.layers:
        torch.nn.init.zeros_(layer.query.weight)  # every head attends to all memories alike
    episode = play_steps(policy, 300, min_length=400, max_length=400)
    episode = replace(episode, decisions=np.arange(300) == 299)
    lives = look(policy, episode, 5)
    told = audit(policy, episode, lives, 3, swap=None)
    assert [row["step"] for row in told["memories"]] == [299] * 3
    assert all(0 < row["attention"] < MIN_WEIGHT for row in told["memories"])
    data = record(policy, episode, lives, names=["n", "e", "s", "w"], about={"env": "x"}, audit=told)
    assert "3 measured" in data["story"]["headline"] or data["story"]["matters"]
    assert data["layers"][0]["attention"][299]["to"] == []  # nothing that could be seen


def test_what_was_compressed_goes_with_the_slot_that_it_is_a_part_of():
    policy = make_policy("compressive")  # at step 23 the slots of steps 12 to 15 and 16 to 19 are one each
    episode = replace(play_steps(policy, 24), decisions=np.arange(24) == 23, facts=np.where(np.arange(24) < 1, 0, -1))
    rows = audit(policy, episode, look(policy, episode), 24, swap=Corridor.swap_observation)["memories"]
    assert {row["written"] for row in rows} == set(range(12, 23))
    for row in rows:
        layer, written = row["layer"], row["written"]
        last = written if written >= 20 else written // 4 * 4 + 3

        def forget(now, acting, layer=layer, last=last):
            if now == 23:
                position = acting.layers[layer].slots.position
                assert (position == last)[0].sum() == 1
                position.masked_fill_(position == last, GONE)

        def never(now, acting, written=written):
            if now == written + 1:
                for buffers in acting.layers:
                    buffers.slots.position[0, written] = GONE

        direct, total = by_hand(policy, episode, forget), by_hand(policy, episode, never)
        np.testing.assert_allclose(row["direct_removed"]["probabilities"], direct[0][23], atol=2e-4)
        np.testing.assert_allclose(row["total_removed"]["probabilities"], total[0][23], atol=2e-4)
        assert (row["direct_swapped"] is None) == (written < 20)
        assert row["total_swapped"] is not None
    assert max(row["total_removed"]["shift"] for row in rows if row["written"] < 20) > 0.001


def test_in_switch_a_swap_changes_one_signal_only():
    policy = make_policy(env_id="Switch-v0")
    head = policy.policy_head.weight.clone()
    torch.nn.init.zeros_(policy.policy_head.weight)  # random actions, so that the agent moves
    env = make_env("Switch-v0", max_steps=60, passage_length=2, min_hold=1, max_hold=2)
    episode = play(policy, env, 0, 60, False)
    policy.policy_head.weight.data.copy_(head)
    logits, values = logits_by_hand(policy, episode, lambda t, acting: None)
    episode = replace(episode, params=logits.double(), marginals=chances(logits), values=values)
    assert len({*episode.facts.tolist()} - {-1}) > 2
    told = audit(policy, episode, look(policy, episode), 1, swap=Switch.swap_observation)
    assert told["decisions"] == np.flatnonzero(episode.decisions).tolist()
    real = tensors_of(policy, episode.observations)["image"]
    for row in told["memories"][::5]:
        before = episode.facts[: row["written"] + 1]
        assert row["fact"] == before[before >= 0][-1]
        this = torch.as_tensor(episode.facts == row["fact"])[:, None, None, None, None]
        other = torch.where(this, torch.as_tensor(Switch.swap_observation(real.numpy())), real)
        assert (other != real).any()
        expected, _ = by_hand(policy, episode, lambda t, acting: None, other)
        np.testing.assert_allclose(row["total_swapped"]["probabilities"], expected[row["step"]], atol=2e-4)
    assert max(row["total_swapped"]["shift"] for row in told["memories"]) > 0.01


@pytest.mark.parametrize("kwargs", [{}, {"wraps": ["stretch=2"]}], ids=["plain", "stretched"])
def test_in_the_t_maze_a_swap_changes_the_side_that_the_first_observation_names(kwargs):
    policy = make_policy(env_id="TMaze-v0", length=4, **kwargs)
    env = make_env("TMaze-v0", length=4, **kwargs)
    episode = replace(play(policy, env, 1, 5, False), decisions=np.arange(5) == 4)
    assert episode.facts.tolist() == [0, -1, -1, -1, -1]
    rows = audit(policy, episode, look(policy, episode), 3, swap=env.unwrapped.core.swap_observation)["memories"]
    first = episode.observations[0]["observation"]
    other = [{**episode.observations[0], "observation": first * [1, -1]}, *episode.observations[1:]]
    expected = by_hand(policy, replace(episode, observations=other), lambda t, acting: None)[0][4]
    assert len(rows) == 3
    for row in rows:
        np.testing.assert_allclose(row["total_swapped"]["probabilities"], expected, atol=2e-4)
        assert row["direct_swapped"] is not None
    assert rows[0]["total_swapped"]["shift"] > 0.001


# What it finds in the shipped policy


def test_what_is_attended_to_need_not_matter_and_the_fact_does():
    """At the door, one head attends only to the ball, in both layers. Another attends only to the step before. Without
    the ball the agent takes the other door; without the other memory it does not."""
    policy, _ = load_policy(SHIPPED)
    episode = play(policy, make_env("Corridor-v0", min_length=100), 3, 1000, True)
    told = audit(policy, episode, look(policy, episode), 3, swap=Corridor.swap_observation)
    assert told["decisions"] == [len(episode.actions) - 1]
    balls = [row for row in told["memories"] if row["written"] == 0]
    others = [row for row in told["memories"] if row["written"] != 0]
    assert len(balls) == 2 and len(others) == 1
    for row in (*balls, *others):
        assert row["attention"] > 0.9 and row["total_swapped"]["action"] != row["base"]["action"]
    for cut in ("direct_removed", "direct_swapped", "total_removed"):
        # Removed from one layer alone, the ball is missed only in the layer that reads it.
        missed = [ball[cut]["shift"] > 0.9 and ball[cut]["action"] != ball["base"]["action"] for ball in balls]
        assert sum(missed) == (2 if cut == "total_removed" else 1)
        assert all(row[cut]["shift"] < 0.05 and row[cut]["action"] == row["base"]["action"] for row in others)
    shown = table({"env": "Corridor-v0", "seed": 3, "action_names": ["n", "e", "s", "w"], "audit": told})
    assert len(shown.rows) == 3


def test_a_fact_that_was_seen_twice_survives_the_removal_of_one_observation():
    """The agent bumps into the ball once, so that the observation of step 0 occurs twice."""
    policy, _ = load_policy(SHIPPED)
    base = play(policy, make_env("Corridor-v0", min_length=60, max_length=60), 1, 1000, True)
    twice = {**base.observations[0], "previous_action": np.int64(3), "previous_reward": np.float32(0)}
    observations = [base.observations[0], twice, *base.observations[1:]]
    real = tensors_of(policy, observations)
    rounds = list(
        replay(
            policy, {key: value.expand(-1, 4, *value.shape[2:]) for key, value in real.items()}, removals=[-1, 0, 1, -1]
        )
    )
    doors = rounds[-1][1].argmax(-1).tolist()
    assert doors[0] == base.actions[-1]
    assert doors[1] == doors[2] == doors[0]
    other = {**real, "image": torch.as_tensor(Corridor.swap_observation(real["image"].numpy()))}
    assert [*replay(policy, other)][-1][1].argmax(-1).item() != doors[0]


def test_at_the_door_the_ball_is_remembered_and_its_colour_decides_in_200_episodes():
    """All episodes in one batch: as they were played, and with the ball's colour swapped in every observation. When an
    episode is over, another one follows, which does not count."""
    policy, _ = load_policy(SHIPPED)
    count = 200
    env = make_vec_env("Corridor-v0", count)
    seen, _ = env.reset(seed=10_000)
    acting = policy.begin(policy.initial_memory(count), 256)
    observations, doors, length = [], np.full(count, -1), np.zeros(count, int)
    alive, beside_the_ball = np.zeros(count, bool), np.zeros(count, bool)
    while (doors < 0).any():
        observations.append(seen)
        going = doors < 0
        at_door = env.unwrapped.core.decisions() & going
        facts = env.unwrapped.core.facts()
        if len(observations) == 1:
            beside_the_ball = facts == 0
        start = torch.full((count,), len(observations) == 1)
        if acting.full:
            acting = policy.begin(acting.memory(), 256)
        if at_door.any():
            layers = acting.memory().layers
            held = np.stack([((layer.birth == 0) & layer.alive).any(1).numpy() for layer in layers]).any(0)
        logits, _ = policy.step(as_tensors({k: seen[k] for k in policy.config.observation}, "cpu"), acting, start)
        actions = logits.argmax(-1).numpy()
        seen, _, terminated, truncated, _ = env.step(actions)
        ended = going & (terminated | truncated)
        assert (at_door | ~ended).all()
        if ended.any():
            alive[ended], doors[ended], length[ended] = held[ended], actions[ended], len(observations)
    assert beside_the_ball.all()
    assert alive.mean() >= 0.95
    stacked = {key: np.stack([o[key] for o in observations]) for key in policy.config.observation}
    stacked["image"] = Corridor.swap_observation(stacked["image"])
    flipped = np.zeros(count, bool)
    for t, logits, _, _ in replay(policy, as_tensors(stacked, "cpu")):
        now = length == t + 1
        other = logits.argmax(-1).numpy()
        flipped[now] = (doors[now] + other[now] == 2) & (doors[now] != other[now])  # north is 0, south is 2
    assert flipped.mean() >= 0.95
