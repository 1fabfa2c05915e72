"""The registry of memory kinds: entries say what their classes say, and build the cores of policies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expire_span_rl.policies import KINDS
from expire_span_rl.policies.memory import MemoryEntry, MemoryKind
from expire_span_rl.policies.memory.entries import CoreEntry, LayerEntry
from expire_span_rl.policies.memory.transformer_xl import TransformerXL
from expire_span_rl.policies.networks import NETWORKS
from expire_span_rl.policies.recurrent.gru import GRU
from expire_span_rl.policies.settings import GRUConfig, RecurrentConfig, TransformerConfig, TransformerXLConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", KINDS)
def test_an_entry_says_what_its_class_says(name):
    entry = KINDS[name]
    kind = entry.load()
    assert isinstance(entry, MemoryEntry) and entry.is_builtin and kind.__name__ == entry.class_name
    for attribute in ("Config", "CoreConfig", "stores", "supports_forgetting"):
        assert getattr(kind, attribute) == getattr(entry, attribute), attribute


@pytest.mark.parametrize("name", KINDS)
def test_an_entry_builds_the_core_of_a_policy(name):
    """With the width that the core's config says, and a memory for as many environments as asked."""
    entry = KINDS[name]
    core = entry.build(entry.CoreConfig(width=16, num_layers=2), entry.Config())
    memory = core.initial_memory(3)
    features = core.step(torch.zeros(3, 16), core.begin(memory, 1), torch.ones(3, dtype=torch.bool))
    assert features.shape == (3, 16)
    kinds = [type(layer.kind) for layer in core.layers]
    assert kinds == ([entry.load()] * 2 if issubclass(entry.load(), MemoryKind) else [])
    assert (memory.live() is not None) == entry.stores


class Window(TransformerXL):
    """A user's own memory kind."""

    Config = TransformerXLConfig


class Gated(GRU):
    """A user's own core."""


def test_a_class_of_the_users_own_becomes_an_entry(monkeypatch):
    monkeypatch.setitem(KINDS, "window", Window)
    monkeypatch.setitem(KINDS, "gated", Gated)
    window, gated = KINDS["window"], KINDS["gated"]
    assert window == LayerEntry(Window, Config=TransformerXLConfig, CoreConfig=TransformerConfig)
    assert gated == CoreEntry(Gated, Config=GRUConfig, CoreConfig=RecurrentConfig, stores=False)
    assert not window.is_builtin and window.class_name == "Window"
    assert type(gated.build(RecurrentConfig(width=8), GRUConfig())) is Gated
    assert type(window.build(TransformerConfig(width=8), Window.Config()).layers[0].kind) is Window
    monkeypatch.setitem(KINDS, "again", window)
    assert KINDS["again"] is window


def test_registries_need_no_torch():
    code = """
import sys
from expire_span_rl.agents import AGENTS
from expire_span_rl.policies import KINDS, NETWORKS
print([entry.Config.__name__ for entry in (*KINDS.values(), *AGENTS.values())][:2], "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['ExpireSpanConfig', 'TransformerXLConfig'] False\n"


def test_a_network_whose_package_is_missing_is_said_in_one_line(monkeypatch):
    for name in [module for module in sys.modules if module.startswith("sb3_contrib")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ValueError, match=r"^sb3-lstm \(sb3-recurrent-ppo\): expected the package sb3-contrib, .*\]'$"):
        NETWORKS["sb3-lstm"].reader()
