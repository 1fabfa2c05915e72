"""Observations of every space: what an encoder reads, and what is saved with the policy. N observations."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from expire_span_rl.policies import ActorCritic, check_spaces, observation_spec
from expire_span_rl.policies.encoders import ENCODERS, make_entry, same_observation, words
from expire_span_rl.policies.encoders.cells import CELL_VALUES, CellsEncoder
from expire_span_rl.policies.encoders.vector import VectorEncoder
from expire_span_rl.policies.encoders.words import WordsEncoder
from expire_span_rl.spaces import Cells, Mask, Words, word_numbers

SPACES = {
    "cells": Cells(3, 5),
    "words": Words(6),
    "mask": Mask(4),
    "discrete": spaces.Discrete(5, start=-2),
    "discrete of many": spaces.Discrete(100_000, start=7),
    "integers": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [0, -1]]),
    "multi_binary": spaces.MultiBinary([2, 2]),
    "whole numbers": spaces.Box(-3, 4, (3,), np.int64),
    "bytes": spaces.Box(0, 255, (3,), np.uint8),
    "flags": spaces.Box(0, 1, (3,), bool),
    "whole numbers of many values": spaces.Box(-(2**40), 2**40, (3,), np.int64),
    "number": spaces.Box(-1, 1, (), np.float32),
    "vector": spaces.Box(-1, 1, (4,), np.float64),
    "tensor": spaces.Box(-np.inf, np.inf, (2, 3, 4), np.float32),
    "picture": spaces.Box(0, 255, (64, 48, 3), np.uint8),
    "small picture": spaces.Box(0, 255, (28, 28, 3), np.uint8),
    "grey picture": spaces.Box(0, 255, (20, 30), np.uint8),
    "stacked frames": spaces.Box(0, 255, (4, 84, 84), np.uint8),
    "a window of bytes": spaces.Box(0, 255, (3, 3, 3), np.uint8),
    "a grid of codes": spaces.Box(0, 3, (8, 8), np.uint8),
    "planes of flags": spaces.Box(0, 1, (10, 10, 4), np.uint8),
    "a faint picture": spaces.Box(0, 3, (40, 40, 3), np.uint8),
}
KINDS = {
    "cells": "cells", "words": "words", "mask": "mask", "discrete": "discrete", "discrete of many": "discrete",
    "integers": "integers", "multi_binary": "integers", "whole numbers": "integers", "bytes": "integers",
    "flags": "integers", "whole numbers of many values": "vector", "number": "vector", "vector": "vector",
    "tensor": "vector", "picture": "picture", "small picture": "picture", "grey picture": "picture",
    "stacked frames": "picture", "a window of bytes": "vector", "a grid of codes": "integers",
    "planes of flags": "integers", "a faint picture": "picture",
}  # fmt: skip


def sample_values(space: spaces.Space, count: int, seed: int = 0) -> torch.Tensor:
    """[N, ...] samples of a space."""
    space.seed(seed)
    return torch.as_tensor(np.stack([np.asarray(space.sample()) for _ in range(count)]))


def test_every_encoder_is_here():
    assert set(KINDS.values()) == ENCODERS.keys()


@pytest.mark.parametrize("name", SPACES)
def test_a_space_is_read_by_its_encoder_and_different_values_look_different(name):
    space = SPACES[name]
    spec = json.loads(json.dumps(observation_spec(spaces.Dict({"x": space}))))["x"]
    assert spec["kind"] == KINDS[name]
    encoder = make_entry(spec)
    value = sample_values(space, 20)
    encoder.observe(value)
    columns = encoder(value, torch.float32)
    assert columns.shape == (20, encoder.size) and torch.isfinite(columns).all()
    for i in range(20):
        for j in range(i):
            is_same = torch.equal(value[i], value[j])
            assert torch.allclose(columns[i], columns[j], atol=1e-6) == is_same


@pytest.mark.parametrize("name", SPACES)
def test_columns_ask_the_device_for_nothing_while_a_step_is_captured(name, monkeypatch):
    """A GPU that captures a step can answer nothing, nor can PyTorch's device without numbers."""
    spec = observation_spec(spaces.Dict({"x": SPACES[name]}), normalize_cells=True, impute_cells=True)["x"]
    encoder, value = make_entry(spec), sample_values(SPACES[name], 4)
    columns = encoder(value, torch.float32)
    monkeypatch.setattr(words, "is_captured", lambda value: True)
    assert torch.allclose(columns, encoder(value, torch.float32), atol=1e-6)
    assert encoder.to("meta")(value.to("meta"), torch.float32).shape == (4, encoder.size)


@pytest.mark.parametrize("name", SPACES)
def test_predicting_an_entry_gets_better_by_descent(name):
    encoder = make_entry(observation_spec(spaces.Dict({"x": SPACES[name]}))["x"])
    value = sample_values(SPACES[name], 6)
    if not encoder.outputs:
        assert encoder.surprise(torch.zeros(6, 0), value) == 0
        return
    encoder.observe(value)
    outputs = torch.zeros(6, encoder.outputs, requires_grad=True)
    before = encoder.surprise(outputs, value)
    optimizer = torch.optim.Adam([outputs], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        encoder.surprise(outputs, value).backward()
        optimizer.step()
    after = encoder.surprise(outputs, value)
    assert before > 0 and after < before / 3, (before, after)


def test_pictures_of_few_brightnesses_are_as_clear_as_others():
    """Divided by 255, the numbers 0 to 3 would all be nearly black."""
    faint = spaces.Box(0, 3, (40, 40, 3), np.uint8)
    spec = observation_spec(spaces.Dict({"x": faint}))["x"]
    usual = make_entry(observation_spec(spaces.Dict({"x": spaces.Box(0, 255, (40, 40, 3), np.uint8)}))["x"])
    encoder = make_entry(spec)
    encoder.load_state_dict(usual.state_dict())
    value = sample_values(faint, 3)
    assert torch.allclose(encoder(value, torch.float32), usual(value * 85, torch.float32), atol=1e-5)
    assert same_observation({"kind": "picture", "shape": [40, 40, 3], "channels": "last"}, spec), "of earlier policies"


@pytest.mark.parametrize("name", ["discrete", "integers", "whole numbers", "bytes"])
def test_one_hot_columns_say_the_value(name):
    space = SPACES[name]
    encoder = make_entry(observation_spec(spaces.Dict({"x": space}))["x"])
    low = getattr(space, "start", None) if name in ("discrete", "integers") else space.low
    sizes = {"discrete": [5], "integers": [2, 3, 4, 5], "whole numbers": [8] * 3, "bytes": [256] * 3}[name]
    value = sample_values(space, 4)
    columns = encoder(value, torch.float64)
    counted = (value - torch.as_tensor(np.asarray(low), dtype=torch.int64)).reshape(4, -1)
    for i, part in enumerate(columns.split(sizes, 1)):
        assert torch.equal(part, torch.nn.functional.one_hot(counted[:, i], sizes[i]).double())


def test_running_statistics_equal_those_of_all_that_was_seen():
    encoder = VectorEncoder({"shape": [3], "normalize": True})
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 3, generator=generator) * 1e3 + 5e4 for n in (1, 7, 500, 20)]
    for part in parts:
        encoder.observe(part)
    read_values = torch.cat(parts).double()
    torch.testing.assert_close(encoder.mean.double(), read_values.mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(encoder.variance.double(), read_values.var(0, correction=0), rtol=1e-4, atol=0)
    columns = encoder(read_values.float(), torch.float32)
    assert columns.mean(0).abs().max() < 1e-2 and (columns.std(0) - 1).abs().max() < 1e-2
    assert encoder(torch.tensor([[1e9, 0, 0]]), torch.float32).abs().max() == 10


def cells_of(generator: torch.Generator, count: int) -> torch.Tensor:
    """[count,2,1,3]: a wall, mostly, and any object of any colour and state."""
    wall = torch.tensor([2, 5, 0]).expand(count, 3).clone()
    wall[torch.rand(count, generator=generator) < 0.1] = torch.tensor([5, 1, 0])
    anything = torch.stack([torch.randint(0, n - 1, (count,), generator=generator) for n in CELL_VALUES], 1)
    return torch.stack([wall, anything], 1)[:, :, None].to(torch.uint8)


def test_normalized_cells_have_the_mean_0_and_the_variance_1():
    """Of all that was seen, in parts of any size. What is always the same gives 0, and so does what was never seen."""
    encoder = CellsEncoder({"shape": [2, 1, 3], "normalize": True})
    generator = torch.Generator().manual_seed(0)
    parts = [cells_of(generator, count) for count in (1, 700, 40, 2000)]
    plain = CellsEncoder({"shape": [2, 1, 3]})
    assert torch.equal(encoder(parts[1], torch.float32), plain(parts[1], torch.float32))  # before any statistics
    for part in parts:
        encoder.observe(part)
    everything = torch.cat(parts)
    one_hot = plain(everything, torch.float64)
    torch.testing.assert_close(encoder.frequency.double(), one_hot.mean(0), rtol=1e-4, atol=1e-6)
    columns = encoder(everything, torch.float64)
    frequent = (one_hot.mean(0) > 0.05) & (one_hot.mean(0) < 0.95)
    assert columns.mean(0).abs().max() < 1e-3 and 5 < frequent.sum() < 30
    expected = one_hot.var(0, correction=0) / (one_hot.var(0, correction=0) + 0.01)
    torch.testing.assert_close(columns.var(0, correction=0)[frequent], expected[frequent], rtol=1e-3, atol=0)
    constant = one_hot.var(0) == 0
    assert constant.sum() > 10 and not columns[:, constant].any()
    unseen = torch.tensor([[[[10, 0, 3]], [[2, 5, 0]]]], dtype=torch.uint8)
    seen = torch.tensor([[[[2, 5, 0]], [[2, 5, 0]]]], dtype=torch.uint8)
    difference = encoder(unseen, torch.float64) != encoder(seen, torch.float64)
    assert set(torch.nonzero(difference)[:, 1].tolist()) <= {2, 11 + 5, 11 + 6}  # that the wall is missing


def test_statistics_of_cells_travel_with_the_policy_if_they_are_asked_for():
    space = spaces.Dict({"image": Cells(2, 1)})
    image = {"image": cells_of(torch.Generator().manual_seed(1), 12).unflatten(0, (3, 4))}
    for normalize, impute in itertools.product((False, True), repeat=2):
        policy = ActorCritic.for_spaces(space, spaces.Discrete(2), normalize_cells=normalize, impute_cells=impute)
        policy.observe(image)
        names = {name for name in policy.state_dict() if name.startswith("encoder.parts")}
        expected = ({"frequency", "count"} if normalize or impute else set()) | ({"scale"} if normalize else set())
        assert names == {f"encoder.parts.0.{name}" for name in expected}
        entry = policy.config.observation["image"]
        assert (entry.get("normalize", False), entry.get("impute", False)) == (normalize, impute)
        if names:
            assert policy.state_dict()["encoder.parts.0.count"] == 12


@pytest.mark.parametrize("normalize", [False, True])
def test_a_cell_that_shows_what_was_never_seen_there_reads_as_what_is_usual_there(normalize):
    """In each of its parts: object, colour and state. The other cells read as they are."""
    encoder = CellsEncoder({"shape": [2, 1, 3], "normalize": normalize, "impute": True})
    plain = CellsEncoder({"shape": [2, 1, 3], "normalize": normalize})
    wall, ball, door, floor = [2, 5, 0], [6, 1, 0], [4, 1, 2], [3, 5, 0]

    def view(*cells: list[int]) -> torch.Tensor:
        return torch.tensor([cells], dtype=torch.uint8)[:, :, None]

    assert torch.equal(encoder(view(floor, ball), torch.float32), plain(view(floor, ball), torch.float32))
    for part in (view(wall, ball), view(wall, door), view(ball, door)):  # the counts of parts, in any order
        encoder.observe(part)
        plain.observe(part)
    expected_readings = {
        (tuple(wall), tuple(door)): (wall, door),
        (tuple(floor), tuple(ball)): (wall, ball),  # never such an object in the first cell
        ((2, 4, 0), tuple(ball)): (wall, ball),  # nor such a colour
        ((2, 5, 3), tuple(ball)): (wall, ball),  # nor such a state
        (tuple(wall), tuple(wall)): (wall, [4, 1, 2]),  # walls were seen, but not in the second cell
    }
    for shown, read in expected_readings.items():
        value = encoder(view(*map(list, shown)), torch.float64)
        assert torch.equal(value, plain(view(*read), torch.float64))
    both = torch.cat([view(floor, ball), view(wall, door)])
    assert torch.equal(
        encoder(both, torch.float64), plain(torch.cat([view(wall, ball), view(wall, door)]), torch.float64)
    )


def test_without_normalization_numbers_are_read_as_they_are_and_nothing_is_learned():
    encoder = VectorEncoder({"shape": [2]})
    value = torch.tensor([[1e4, -3.0]])
    encoder.observe(value)
    assert torch.equal(encoder(value, torch.float32), value) and not encoder.state_dict()


def test_before_any_statistics_a_bounded_number_lies_around_0_by_its_bounds():
    space = spaces.Dict({"x": spaces.Box(100, 300, (2,)), "y": spaces.Box(-np.inf, np.inf, (1,))})
    policy = ActorCritic.for_spaces(space, spaces.Discrete(2))
    (_, x), (_, y) = policy.encoder.entries()
    torch.testing.assert_close(x(torch.tensor([[100.0, 300.0]]), torch.float32), torch.tensor([[-(3**0.5), 3**0.5]]))
    assert y(torch.tensor([[4.0]]), torch.float32) == 4
    for dtype in (np.float32, np.float64):
        ends = np.finfo(dtype)
        space = spaces.Dict({"far": spaces.Box(ends.min, ends.max, (1,), dtype), "wide": spaces.Box(-1e25, 1e25, (1,))})
        (_, far), (_, wide) = ActorCritic.for_spaces(space, spaces.Discrete(2)).encoder.entries()
        assert far(torch.tensor([[4.0]]), torch.float32) == 4  # as without bounds
        assert torch.isfinite(wide.variance).all()
    large_numbers = ActorCritic.for_spaces(
        spaces.Dict({"x": spaces.Box(0, 10**6, (1,), np.int64)}), spaces.Discrete(2), False
    )
    assert large_numbers.config.observation["x"]["normalize"] is True  # as one-hot columns they would be too many


def test_a_previous_reward_of_any_size_is_read_as_nothing_before_there_are_statistics():
    space = spaces.Dict({"previous_reward": spaces.Box(-np.inf, np.inf, ())})
    policy = ActorCritic.for_spaces(space, spaces.Discrete(2), normalize_reward=True)
    ((_, entry),) = policy.encoder.entries()
    assert entry(torch.tensor([1e-3, 1e6]), torch.float32).abs().max() < 1e-6
    policy.observe({"previous_reward": torch.tensor([[0.0, 2.0]])})
    assert entry(torch.tensor([0.0, 2.0]), torch.float32)[:, 0].tolist() == [-1, 1]


def test_statistics_travel_with_the_policy_and_previous_reward_has_none():
    space = spaces.Dict({"observation": spaces.Box(-1, 1, (2,)), "previous_reward": spaces.Box(-9, 9, ())})
    policy = ActorCritic.for_spaces(space, spaces.Discrete(2))
    policy.observe({"observation": torch.full((3, 2, 2), 5.0), "previous_reward": torch.full((3, 2), 7.0)})
    state = policy.state_dict()
    assert [name for name in state if name.endswith("mean")] == ["encoder.parts.0.mean"]
    assert state["encoder.parts.0.mean"].tolist() == [5.0, 5.0] and state["encoder.parts.0.count"] == 6
    assert observation_spec(space)["previous_reward"] == {"kind": "vector", "shape": []}


def test_the_words_of_a_text_count_and_so_does_their_order():
    encoder = WordsEncoder({"shape": [12]})
    texts = ["go to the red ball", "go to the blue ball", "put the red ball next to the blue box",
             "put the blue ball next to the red box", "", "Go to the RED ball"]  # fmt: skip
    columns = encoder(torch.stack([torch.as_tensor(word_numbers(text, 12).copy()) for text in texts]), torch.float32)
    distances = torch.cdist(columns, columns)
    assert distances[0, 5] == 0 and (distances[:5, :5] + torch.eye(5) > 0.05).all()
    assert columns[4].abs().max() == 0


@pytest.mark.parametrize("has_hash", [True, False])
def test_texts_of_the_same_words_are_not_taken_for_each_other(has_hash):
    """Also where all have one hash: each text has the columns that it has alone."""
    encoder = WordsEncoder({"shape": [48]})
    if not has_hash:
        encoder.factors.zero_()
    rng = np.random.default_rng(0)
    shuffled = [" ".join(rng.permutation(list("aabbccdd"))) for _ in range(50)]
    texts = ["red blue blue red", "blue red red blue", *shuffled]
    value = torch.stack([torch.as_tensor(word_numbers(text, 48).copy()) for text in texts * 2])
    columns = encoder(value, torch.float32)
    for i in range(len(value)):
        assert torch.allclose(columns[i], encoder(value[i : i + 1], torch.float32)[0], atol=1e-6), texts[i % len(texts)]
    assert (columns[0] - columns[1]).abs().max() > 0.05


def test_the_number_of_a_word_is_the_same_everywhere():
    """The numbers are saved in files, so they must not depend on a process's hash seed."""
    assert word_numbers("red ball!", 5).tolist() == [3947933639, 4073961314, 1584705409, 0, 0]


def test_a_features_extractor_of_stable_baselines3_reads_the_environments_own_observation():
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class Flat(BaseFeaturesExtractor):
        def __init__(self, observation_space, features_dim=7):
            super().__init__(observation_space, features_dim)
            self.linear = nn.Linear(observation_space.n, features_dim)

        def forward(self, observations):
            return self.linear(observations)

    space = spaces.Dict({
        "observation": spaces.Discrete(5), "previous_action": spaces.Discrete(3),
        "previous_reward": spaces.Box(-9, 9, ()),
    })  # fmt: skip
    policy = ActorCritic.for_spaces(space, spaces.Discrete(2), features_extractor=(Flat, {"features_dim": 9}))
    assert policy.config.features_extractor.endswith("Flat")
    assert policy.encoder.project.in_features == 9 + 3 + 1
    observation = {"observation": torch.tensor([0, 4]), "previous_action": torch.tensor([2, 1]),
                   "previous_reward": torch.zeros(2)}  # fmt: skip
    policy.encoder(observation).sum().backward()
    assert policy.encoder.extractor.network.linear.weight.grad.abs().sum() > 0
    with pytest.raises(
        TypeError, match=r"^features_extractor_class: expected a subclass of BaseFeaturesExtractor, got "
    ):
        ActorCritic.for_spaces(space, spaces.Discrete(2), features_extractor=(nn.Linear, {}))


def test_a_policy_tells_which_part_of_another_environment_differs():
    space = spaces.Dict({"a": spaces.Discrete(5), "b": spaces.Box(-1, 1, (2,))})
    config = ActorCritic.for_spaces(space, spaces.Discrete(2)).config
    check_spaces(config, space, spaces.Discrete(2), "p", "E")
    plain = ActorCritic.for_spaces(space, spaces.Discrete(2), normalize=False).config
    check_spaces(plain, space, spaces.Discrete(2), "p", "E")
    other_space = spaces.Dict({"a": spaces.Discrete(6), "b": spaces.Box(-1, 1, (2,))})
    with pytest.raises(ValueError, match=r"^p: expected an environment with observation 'a' .*5.*, E has .*6"):
        check_spaces(config, other_space, spaces.Discrete(2), "p", "E")
    with pytest.raises(ValueError, match=r"observation 'b' .*, E has none of that name"):
        check_spaces(config, spaces.Dict({"a": spaces.Discrete(5)}), spaces.Discrete(2), "p", "E")
    one_more = spaces.Dict({"a": spaces.Discrete(5), "b": spaces.Box(-1, 1, (2,)), "c": spaces.Discrete(3)})
    with pytest.raises(ValueError, match=r"^p: expected an environment without observation 'c', .*, E has discrete"):
        check_spaces(config, one_more, spaces.Discrete(2), "p", "E")
    with pytest.raises(ValueError, match=r"^p: expected an environment with actions .*2.*, E has .*3"):
        check_spaces(config, space, spaces.Discrete(2, start=3), "p", "E")


def test_a_features_extractor_gets_pictures_with_their_channels_first():
    """As Stable-Baselines3's own environments give them to its NatureCNN. An unreadable space gives an error of one
    line."""
    from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN

    picture = spaces.Box(0, 255, (64, 48, 3), np.uint8)
    rest = {"previous_action": spaces.Discrete(3), "previous_reward": spaces.Box(-9, 9, ())}
    observation = {"image": torch.randint(256, (2, 64, 48, 3), dtype=torch.uint8),
                   "previous_action": torch.tensor([2, 1]), "previous_reward": torch.zeros(2)}  # fmt: skip
    policy = ActorCritic.for_spaces(
        spaces.Dict({"image": picture, **rest}), spaces.Discrete(2), features_extractor=(NatureCNN, {"features_dim": 8})
    )
    assert policy.encoder(observation).shape == (2, 64)
    two_entries = spaces.Dict({"image": picture, "speed": spaces.Box(-1, 1, (2,)), **rest})
    policy = ActorCritic.for_spaces(two_entries, spaces.Discrete(2), features_extractor=(CombinedExtractor, {}))
    assert policy.encoder({**observation, "speed": torch.zeros(2, 2)}).shape == (2, 64)
    with pytest.raises(ValueError, match=r"^features_extractor_class: CombinedExtractor cannot read Box\("):
        ActorCritic.for_spaces(
            spaces.Dict({"image": picture, **rest}), spaces.Discrete(2), features_extractor=(CombinedExtractor, {})
        )
