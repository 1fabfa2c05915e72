"""Long memory for reinforcement learning: Expire-Span Transformers as the memory of PPO and IMPALA agents.

    import expire_span_rl as es

    model = es.PPO("expire_span", "Corridor-v0", num_envs=128, memory_budget=20)
    model.learn(total_timesteps=1_000_000, progress_bar=True)
    model.save("policy.safetensors")
    es.evaluate("policy.safetensors", episodes=1000)
    es.show("policy.safetensors", seed=3)

What needs torch is imported when it is first asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expire_span_rl.registry import lazily

if TYPE_CHECKING:
    from expire_span_rl.api import IMPALA, PPO, Model, evaluate, load, show
    from expire_span_rl.envs import make_env, make_vec_env

__version__ = "0.2.0"

# In a checkout the subpackages (`agents`, `envs`, `policies`, `viewer`, `cli`) stand beside this folder, not in it.
# The package itself decides, not what lies beside it: an installed one never takes up its neighbours.
_HERE = Path(__file__).resolve().parent
if not (_HERE / "policies").is_dir():
    __path__.append(str(_HERE.parent))

_LAZY = {
    "IMPALA": "api",
    "PPO": "api",
    "Model": "api",
    "evaluate": "api",
    "load": "api",
    "make_env": "envs",
    "make_vec_env": "envs",
    "show": "api",
}
"""Names by the module of this package that has them."""

__all__ = ["IMPALA", "PPO", "Model", "__version__", "evaluate", "load", "make_env", "make_vec_env", "show"]


__getattr__ = lazily(__name__, _LAZY)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
