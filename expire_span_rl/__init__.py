"""Long memory for reinforcement learning: Expire-Span Transformers as the memory of PPO and IMPALA agents."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.2.0"

# In a checkout the subpackages (`agents`, `envs`, `policies`, `viewer`, `cli`) stand beside this folder, not in it.
_HERE = Path(__file__).resolve().parent
if not (_HERE / "policies").is_dir():
    __path__.append(str(_HERE.parent))
