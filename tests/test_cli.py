"""What the scripts' command lines share."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from script_cases import ROOT

import evaluate
import visualize
from expire_span_rl.cli.settings import parse_config

FLAGS = {
    "train_rl.py": [*parse_config([])],
    "evaluate.py": [f.name for f in dataclasses.fields(evaluate.EvaluateConfig)],
    "visualize.py": [f.name for f in dataclasses.fields(visualize.Flags)],
}


@pytest.mark.parametrize("script", FLAGS)
def test_help_lists_every_flag_and_exits_with_0(script):
    done = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "default" in done.stdout
    for name in set(FLAGS[script]) - {"policies", "path", "training_kwargs"}:  # no flags: arguments, and what follows
        assert f"--{name.replace('_', '-')}" in done.stdout
