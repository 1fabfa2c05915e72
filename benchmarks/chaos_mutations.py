"""Random changes of a run's files and of command lines. The same random numbers give the same change."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from expire_span_rl.agents.checkpoint import checkpoint_bytes

VALUES: list[Any] = [
    0, -1, 1, 2, 3, 7, 64, 20_000, 10**6, 10**9, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-300, 1e308, float("nan"),
    float("inf"), True, False, None, "", "x", "gru", "none", "Portal-v0", "MiniGrid-Empty-5x5-v0", "os:x",
    "\x1b[2J" * 3000, "a" * 100_000, "ü\u202e\n\r", "../../x", [], {}, [1] * 1000, [[[]]], {"a": {"b": 1}},
    ["stretch=1000000"] * 3, {"size": 20_000}, {"max_length": 10**9}, {"max_steps": 10**18}, {"view_size": 31},
    {"shape": [20_000, 20_000, 3]},
]  # fmt: skip
"""What a value in JSON is replaced by."""
WORDS = [
    "", " ", "-", "--", "---", "=", "-1", "0", "1", "2", "3.5", "nan", "inf", "1e400", "1e30", "9" * 5000,
    "a" * 100_000, "\x1b[31mx", "ü\u202e", "\udcff", "[" * 3000, "{}", "[]", "null", '{"max_length": 1e400}',
    '{"max_length": 7}', '{"a": 1}', '{"view_size": 5}', "none", "gru", "impala", "Portal-v0", "CartPole-v1", "a:b:c",
    "none.py:X", "/dev/null", ".", "..", "run", "run/config.json", "run/policy.safetensors", "x.json", "x.png",
    "x.html", "none/x.json", "stretch=1000000", "stretch=-1", "episodes=2", "cuda", "True", "--help", "--resume",
    "--overwrite", "--env", "--num-heads", "3", "-h", "--widht", "--no-gating",
]  # fmt: skip
"""What a word of a command line is replaced by."""
TRAINING = [
    "--env", "Corridor-v0", "--env-kwargs", '{"max_length": 5}', "--num-envs", "2", "--num-steps", "8",
    "--num-minibatches", "2", "--width", "8", "--num-heads", "2", "--torch-threads", "1", "--no-progress-bar",
    "--run-dir", "new", "--total-timesteps", "16",
]  # fmt: skip
COMMANDS: list[tuple[str, list[str]]] = [
    ("train_rl", TRAINING),
    ("train_rl", [*TRAINING, "--memory", "transformer_xl", "--window", "4", "--seed", "3", "--gating"]),
    ("train_rl", [*TRAINING, "--memory", "compressive", "--window", "4", "--compression-rate", "2", "--agent",
        "impala"]),
    ("train_rl", [*TRAINING, "--memory", "adaptive_span", "--max-span", "16", "--checkpoint-every", "8",
        "--overwrite"]),
    ("train_rl", ["--resume", "run", "--no-progress-bar", "--total-timesteps", "80"]),
    ("evaluate", ["run", "--episodes", "2", "--num-envs", "2", "--max-steps", "100", "--json", "x.json"]),
    ("evaluate", ["run", "run/policy.safetensors", "--episodes", "2", "--wrap", "stretch=2", "--env-kwargs", "{}",
        "--stochastic"]),
    ("visualize", ["run", "--out", "x.html", "--max-steps", "100", "--seed", "3", "--audit", "1"]),
    ("visualize", ["run", "--out", "x.json.html", "--png", "x.png", "--json", "x.json", "--episodes", "2",
        "--max-steps", "100"]),
]  # fmt: skip
SHORT_COMMANDS = {
    "evaluate": ["run", "--episodes", "2", "--num-envs", "2", "--max-steps", "60"],
    "visualize": ["run", "--max-steps", "60", "--audit", "1"],
    "train_rl": ["--resume", "run", "--no-progress-bar", "--total-timesteps", "80"],
}


def change_command(rng: random.Random, folder: Path) -> tuple[str, list[str], str]:
    """(script, arguments, what was changed). No word asks for a very long run, or for a folder elsewhere."""
    script, command = rng.choice(COMMANDS)
    words = list(command)
    changes = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        place = rng.randrange(len(words)) if words else 0
        change = rng.choice(["replace", "replace", "remove", "insert", "repeat", "swap", "typo", "join"])
        if change == "insert" or not words:
            words.insert(place, rng.choice(WORDS))
        elif change == "replace":
            words[place] = rng.choice(WORDS)
        elif change == "remove":
            del words[place]
        elif change == "repeat":
            words[place:place] = words[place : place + rng.choice([1, 2])]
        elif change == "swap":
            second_place = rng.randrange(len(words))
            words[place], words[second_place] = words[second_place], words[place]
        elif change == "typo" and words[place]:
            i = rng.randrange(len(words[place]))
            words[place] = words[place][:i] + rng.choice(["", "x", "-", "=", "e9"]) + words[place][i + 1 :]
        elif change == "join" and place + 1 < len(words):
            words[place : place + 2] = [f"{words[place]}={words[place + 1]}"]
        changes.append(f"{change} {place}")
    words = ["." if word == ".." else word for word in words]
    return script, words, ", ".join(changes)


def change_file(rng: random.Random, folder: Path) -> tuple[str, list[str], str]:
    """Changes a file of the run directory `folder / "run"`. Gives (script that reads it, arguments, what was
    changed)."""
    names = ["policy.safetensors", "checkpoint.safetensors", "config.json", "progress.csv"]
    name = rng.choices(names, [5, 4, 2, 1])[0]
    path = folder / "run" / name
    if name == "policy.safetensors":
        change = rng.choice([*BYTES, "header", "header", "header", "header", "table", "tensor"])
        script = rng.choice(["evaluate", "evaluate", "visualize"])
    elif name == "checkpoint.safetensors":
        change = rng.choice([*BYTES, "header", "header", "table", "tensor", "tensor"])
        script = "train_rl"
    else:
        kinds: list[str] = [*BYTES, *["json"] * 12] if name == "config.json" else [*BYTES]
        change = rng.choice(kinds)
        script = "train_rl"
    data = path.read_bytes()
    if change in BYTES:
        data = BYTES[change](data, rng)
    elif change == "json":
        data = json.dumps(change_json(json.loads(data), rng)).encode()
    elif change == "table":
        data = _change_table(data, rng)
    else:
        data = _change_parts(path, change, rng)
    path.write_bytes(data)
    if script == "train_rl" and rng.random() < 0.5:  # no earlier checkpoint to fall back on
        for checkpoint in folder.glob("run/checkpoint-*.safetensors"):
            checkpoint.unlink()
    return script, SHORT_COMMANDS[script], f"{name}: {change}"


def _flip_bits(data: bytes, rng: random.Random) -> bytes:
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64]) if result else 0):
        result[rng.randrange(len(result))] ^= 1 << rng.randrange(8)
    return bytes(result)


def _flip_early_bits(data: bytes, rng: random.Random) -> bytes:
    end = min(len(data), 5000)
    return _flip_bits(data[:end], rng) + data[end:]


def _write_zeros(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(max(1, len(data)))
    size = rng.choice([1, 512, 4096, len(data)])
    return data[:place] + bytes(min(size, len(data) - place)) + data[place + size :]


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits": _flip_bits,
    "early bits": _flip_early_bits,
    "zeros": _write_zeros,
    "cut": lambda data, rng: data[: rng.randrange(len(data) + 1)],
    "longer": lambda data, rng: data + rng.randbytes(rng.choice([1, 8, 4096])),
    "length": lambda data, rng: struct.pack("<Q", rng.choice([0, 1, 100, 2**31, 2**63, 2**64 - 1])) + data[8:],
    "noise": lambda data, rng: rng.randbytes(rng.choice([0, 7, 8, 9, 5000])),
}
"""Changes of the bytes of any file."""


def change_json(value: Any, rng: random.Random) -> Any:
    """A copy in which one to three places are changed: they have another value or another name, or are missing."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 2, 3])):
        inner: Any = value
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(inner[key], (dict, list)) and inner[key] and rng.random() < 0.8:
                inner = inner[key]
                continue
            change = rng.random()
            if change < 0.7:
                inner[key] = rng.choice(VALUES)
            elif change < 0.85 or isinstance(inner, list):
                del inner[key]
            else:
                inner[rng.choice([name for name in VALUES if isinstance(name, str)])] = inner.pop(key)
            break
    return value


def _change_table(data: bytes, rng: random.Random) -> bytes:
    """Changes the safetensors header itself: the types, shapes and places of its tensors."""
    size = struct.unpack("<Q", data[:8])[0]
    text = json.dumps(change_json(json.loads(data[8 : 8 + size]), rng)).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def _change_parts(path: Path, change: str, rng: random.Random) -> bytes:
    """Changes the JSON of a file, or one of its tensors. The file is valid otherwise, with a correct checksum."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
    (kind,) = {"policy", "training"} & metadata.keys()
    header = json.loads(metadata[kind])
    if change == "header":
        header = change_json(header, rng)
    else:
        _change_tensor(tensors, rng)
    if kind == "policy" or not isinstance(header.get("figures"), dict):
        return save(tensors, {kind: json.dumps(header)})
    return checkpoint_bytes(tensors, header["figures"])


def _change_tensor(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    """Changes one tensor in place: it has a number that is not finite or huge, another type, shape or name, is missing,
    or exists twice."""
    name = rng.choice(sorted(tensors))
    tensor = tensors[name].clone()
    change = rng.choice(["nan", "inf", "huge", "type", "shape", "name", "missing", "more"])
    if change in ("nan", "inf", "huge"):
        value = {"nan": float("nan"), "inf": float("inf"), "huge": 1e30}[change]
        if tensor.is_floating_point() and tensor.numel():
            tensor.view(-1)[rng.randrange(tensor.numel())] = value
        tensors[name] = tensor
    elif change == "type":
        tensors[name] = tensor.to(rng.choice([torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8]))
    elif change == "shape":
        tensors[name] = rng.choice([tensor[None], tensor.flatten(), torch.zeros(0), torch.zeros(3, 5)]).contiguous()
    elif change == "more":
        tensors[name + "x"] = tensor
    else:
        del tensors[name]
        if change == "name":
            tensors["\x1b[2J" + name] = tensor
