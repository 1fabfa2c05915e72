"""Reading the characters of files and folders, and the batched Text-v0 against a plain transcription of its rules."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expire_span_rl import envs
from expire_span_rl.envs import EnvError, characters
from expire_span_rl.envs.characters import PARTS, read_characters, standard_library
from expire_span_rl.envs.core import counter_uniform
from expire_span_rl.envs.text import NAMES, Text


def parts_of(path: Path) -> list[bytes]:
    return [read_characters(str(path), part).tobytes() for part in PARTS]


@settings(deadline=None, max_examples=30)
@given(longest=st.integers(1, 8), has_random_lengths=st.booleans(), seed=st.integers(0, 10**6))
def test_the_core_follows_the_plain_rules(tmp_path_factory, longest, has_random_lengths, seed):
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_bytes(bytes(range(1, 101)))
    content = bytes(range(1, 91))  # the training part: 90% of the file
    shortest = 1 if has_random_lengths else longest
    lengths = {"stream_length": longest, "min_stream_length": 1 if has_random_lengths else 0}
    core = Text(3, file=str(folder / "a.txt"), part="train", **lengths)
    rows = np.arange(3)
    core.reset(rows, seed + rows)

    def draw_piece(row: int, episode: int) -> bytes:
        """The characters of an episode, and the one after them."""
        u = counter_uniform(np.array([seed + row]), np.array([episode]), np.array([0, 1]))
        length = shortest + int(float(u[0]) * (longest - shortest + 1))
        offset = int(float(u[1]) * (len(content) - length))
        return content[offset : offset + length + 1]

    pieces = [draw_piece(row, 0) for row in rows]
    positions = [0] * 3
    num_right = [0] * 3
    generator = np.random.default_rng(seed)
    for _ in range(40):
        targets = core.target()
        assert core.observe().tolist() == [piece[i] for piece, i in zip(pieces, positions, strict=True)]
        assert targets.tolist() == [piece[i + 1] for piece, i in zip(pieces, positions, strict=True)]
        assert core.decisions().all() and core.facts() is None
        actions = np.where(generator.random(3) < 0.5, targets, generator.integers(256, size=3))
        num_right = [n + int(action == t) for n, action, t in zip(num_right, actions, targets, strict=True)]
        reward, terminated, truncated = core.step(actions)
        positions = [i + 1 for i in positions]
        assert terminated.tolist() == [i == len(piece) - 1 for piece, i in zip(pieces, positions, strict=True)]
        assert not truncated.any()
        info = core.final_info()
        for row in np.flatnonzero(terminated):
            length = positions[row]
            assert [info[name][row] for name in ("right", "asked", "length")] == [num_right[row], length, length]
            assert reward[row] == num_right[row] / length
            pieces[row] = draw_piece(row, int(core.episode[row]) + 1)
            positions[row] = 0
            num_right[row] = 0
        core.reset(np.flatnonzero(terminated))


def test_a_file_is_split_by_position_and_enwik8_into_its_usual_parts(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(97 + i % 26 for i in range(1000)))
    content = path.read_bytes()
    assert parts_of(path) == [content[:900], content[900:950], content[950:]]
    monkeypatch.setattr(characters, "ENWIK8_SIZES", (700, 200, 101))
    path.write_bytes(content + b"z")
    assert [len(part) for part in parts_of(path)] == [700, 200, 101]
    assert b"".join(parts_of(path)) == content + b"z"  # the changed file was read again


def test_a_folder_is_split_by_file(tmp_path):
    for i in range(40):
        (tmp_path / f"{i:02}.py").write_text(f"file {i}\n")
    assert sum(parts_of(tmp_path)[0].count(f"file {i}\n".encode()) for i in range(40)) == 36
    assert parts_of(tmp_path)[1:] == [b"file 18\nfile 38\n", b"file 19\nfile 39\n"]


def test_only_text_files_of_a_folder_are_read_and_fewer_than_20_are_split_by_position(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.md").write_text("second ")
    (tmp_path / "a.txt").write_text("first ")
    (tmp_path / "c.rst").write_text("äö")
    for name in ("d.png", ".hidden.txt"):
        (tmp_path / name).write_text("no")
    (tmp_path / "binary.txt").write_bytes(b"no\0")
    (tmp_path / "latin.txt").write_bytes("äh".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    for folder in ("__pycache__", ".git", "site-packages"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("no")
    os.mkfifo(tmp_path / "pipe.txt")
    assert b"".join(parts_of(tmp_path)) == "first äösecond ".encode()


def test_the_default_is_the_standard_library():
    sizes = [len(read_characters(standard_library(), part)) for part in PARTS]
    assert sum(sizes) > 5_000_000 and sizes[0] > 15 * sizes[2] > 0 < sizes[1]
    core = Text(1)
    assert len(core.characters) == sizes[1] and not core.characters.flags.writeable
    assert envs.training_kwargs("Text-v0") == {"part": "train", "min_stream_length": 1}
    assert envs.private_kwargs("Text-v0") == ("file",) and envs.private_kwargs("Copy-v0") == ()


def test_a_short_part_is_one_piece_and_actions_are_hidden(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghijklmnopqrstuvwxyz" * 2)
    env = envs.make_env("Text-v0", file=str(tmp_path / "a.txt"), part="test", stream_length=10**6)
    observation, _ = env.reset(seed=3)
    text = "abcdefghijklmnopqrstuvwxyz"[-4:]
    assert (env.unwrapped.core.longest, env.unwrapped.memory_horizon) == (3, 3)
    observations = [int(observation["observation"])]
    for _ in range(3):
        observation, *_, info = env.step(ord("b"))
        observations.append(int(observation["observation"]))
        assert observation["previous_action"] == 256
    assert observations == [ord(c) for c in text] and info == {"right": 0, "asked": 3, "length": 3}


@pytest.mark.parametrize("wraps", [[], ["stretch=1"]])
def test_a_state_goes_on_in_its_own_text_only(wraps, tmp_path):
    """A state of an earlier version does not say which text that was: its pieces must lie within the text."""
    path = tmp_path / "a.txt"

    def envs_of(content: str):
        path.write_text(content)
        return envs.make_vec_env("Text-v0", 64, file=str(path), part="train", stream_length=20, wraps=wraps)

    content = "".join(map(str, range(400)))[:1000]
    env = envs_of(content)
    env.reset(seed=0)
    env.step(np.zeros(64, int))
    state = env.state_dict()
    older = {name: array for name, array in state.items() if "text_" not in name}
    envs_of(content).load_state_dict(state)
    envs_of(content).load_state_dict(older)
    changed = content[:500] + "x" + content[501:]
    for other, size in ((content + "more", 903), (content[:500], 450), (changed, 900)):
        had = f"file: expected the text as it was, with 900 characters for train, got another one, with {size}"
        with pytest.raises(EnvError, match=f"^{had}; begin a new run to train on it$"):
            envs_of(other).load_state_dict(state)
    envs_of(content + "more").load_state_dict(older)
    with pytest.raises(EnvError, match=r"^file: .* more than [5-8]\d\d characters .* another one, with 450; begin"):
        envs_of(content[:500]).load_state_dict(older)


def test_characters_have_names():
    assert len(NAMES) == len(set(NAMES)) == 256
    assert [NAMES[i] for i in (9, 10, 32, 0, 65, 126, 200)] == [
        "tab", "line break", "space", "byte 0", "A", "~", "byte 200",
    ]  # fmt: skip


def test_the_error_for_a_bad_text_or_setting_is_one_line(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "latin.txt").write_bytes("ähnlich".encode("latin-1"))
    (tmp_path / "short.txt").write_text("abc")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "missing.txt": "expected a text file or a folder of text files, but .*missing.txt does not exist$",
        "empty.txt": "expected text, but .*empty.txt is empty$",
        "binary.txt": "expected text in UTF-8, but .*binary.txt is binary or in another encoding$",
        "latin.txt": "expected text in UTF-8, but .*latin.txt is binary or in another encoding$",
        "folder": r"expected text files \(.c, .*\) in the folder .*folder, got none$",
        "pipe": "expected a regular file or a folder, but .*pipe is neither$",
        "short.txt": "expected at least 2 characters for validation, got 0$",
    }.items():
        with pytest.raises(envs.EnvError, match=f"^file: {message}"):
            envs.make_env("Text-v0", file=str(tmp_path / name))
    for kwargs, message in (
        ({"file": 3}, "^file: expected the path of a text"),
        ({"file": "a\0"}, "^file: expected the path of a text"),
        ({"part": "trian"}, "^part: expected one of 'train', 'validation', 'test', got 'trian'$"),
        ({"stream_length": 0}, "^stream_length: expected a whole number from 1 to 1000000000, got 0$"),
        ({"min_stream_length": 501}, "^min_stream_length: expected a whole number from 0 to 500, got 501$"),
    ):
        with pytest.raises(envs.EnvError, match=message):
            envs.make_env("Text-v0", **kwargs)


def test_a_text_with_an_incomplete_last_character_is_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("aaaaé".encode()[:-1])
    assert b"".join(parts_of(tmp_path / "a.txt")) == "aaaaé".encode()[:-1]
