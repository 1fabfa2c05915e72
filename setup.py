"""The wheel's one top-level package: in a checkout its subpackages stand beside `expire_span_rl`, in a wheel inside it.

Everything else that describes the package stands in pyproject.toml, which has no words for a mapping of packages
that are found automatically.
"""

from __future__ import annotations

import tempfile

from setuptools import find_packages, setup

SUBPACKAGES = ("agents", "cli", "envs", "policies", "viewer")
found = find_packages(include=[pattern for name in SUBPACKAGES for pattern in (name, f"{name}.*")])
# Not in the checkout: files that were deleted since the last build would come back from there.
build_folder = tempfile.TemporaryDirectory(prefix="expire-span-rl-")

setup(
    packages=["expire_span_rl", *(f"expire_span_rl.{name}" for name in found)],
    package_dir={f"expire_span_rl.{name}": name for name in SUBPACKAGES},
    package_data={"expire_span_rl": ["py.typed"], "expire_span_rl.viewer": ["web/*"]},
    include_package_data=False,
    options={"build": {"build_base": build_folder.name}, "egg_info": {"egg_base": build_folder.name}},
)
