"""Which files of a run directory this toolkit wrote. Nothing else is ever removed from it.

A run directory has a file of its own, MARKER, which is also its lock. Directories from before November 2026 have none:
they are known by their settings, and by holding nothing but a run's files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from expire_span_rl.agents.schedules import whole_rollouts
from expire_span_rl.checks import shown
from expire_span_rl.files import write_atomically

MARKER = ".expire-span-run.lock"
MARKER_CONTENT = "A run directory of expire-span-rl. Whoever trains in it has this file locked.\n"
OUTPUTS = ".expire-span-outputs.json"  # what evaluate.py and visualize.py wrote here, with checksums
CHECKPOINTS = ("checkpoint.safetensors", "checkpoint-1.safetensors", "checkpoint-2.safetensors")
"""The latest checkpoint, the one before it and the one before that."""
ALL_SNAPSHOTS = "all"  # a value of --keep-snapshots
NEWEST_SNAPSHOTS = 5

_SNAPSHOT = re.compile(r"policy_(\d{9,})\.safetensors")
_PLAIN = {"config.json", "progress.csv", "run.log", "policy.safetensors", MARKER, OUTPUTS, *CHECKPOINTS}
_OWN = re.compile(r"events\.out\.tfevents\.[\w.-]+|progress\.damaged(-\d+)?\.csv")
# As `files.write_atomically` names them; the second form is that of before 26 November 2026.
_TEMPORARY = re.compile(
    r"\..+\.[0-9a-f]{8}\.tmp|\.(policy(_\d+)?\.safetensors|checkpoint\.safetensors|config\.json)\.\w{8}"
)
CANNOT_BE_MADE = "--run-dir: expected a directory that can be made, got {} ({})"
_RAY_LOGS = "ray"  # where the logs of actors are copied, a tree of Ray's own names


def check_run_dir(path: Path, resume: bool, overwrite: bool) -> None:
    """Raises ValueError, one line, unless a run can be written at `path`: in a new or empty directory, in a run's own
    if it is resumed, and in one that holds only what a run wrote if it is overwritten."""
    where = shown(path)
    if not resume and (reason := _why_not_writable(path)):
        raise ValueError(CANNOT_BE_MADE.format(where, reason))
    if path.is_symlink() and not resume:
        target = shown(os.path.realpath(path))
        raise ValueError(f"--run-dir: expected a directory, {where} is a link to {target}: name that, or another")
    if not path.exists() or resume:
        return
    empty = path.is_dir() and all(entry.name == MARKER for entry in path.iterdir())
    if not path.is_dir() or not (empty or is_run(path)):
        raise ValueError(f"--run-dir: expected a new directory or one of a run, {where} is another: name another")
    if empty:
        return
    if not overwrite:
        raise ValueError(
            f"--run-dir: expected a new directory, {where} exists: continue it with --resume {where}, replace it "
            "with --overwrite, or name another"
        )
    foreign = next(foreign_entries(path), None)
    if foreign is not None:
        raise ValueError(
            f"--overwrite: expected a run directory with nothing in it but what a run writes, {shown(foreign)} is "
            "something else: move it away, or name another --run-dir"
        )


def _why_not_writable(path: Path) -> str:
    """Why no directory can be made at `path`, or nothing written in it; "" if it can."""
    try:
        parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    except OSError as error:  # a name that is too long, or a file in the place of a folder
        return error.strerror or str(error)
    if not parent.is_dir():
        return "" if parent == path else f"{shown(parent)} is a file"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"nothing can be written in {shown(parent)}"
    return ""


def is_run(path: Path) -> bool:
    """Whether a directory is a run's: it has the marker, or the settings of a run."""
    marker = path / MARKER
    if marker.is_file() and not marker.is_symlink():
        return True
    return _is_settings(path / "config.json")


def foreign_entries(path: Path) -> Iterator[Path]:
    """The entries of a run directory that this toolkit did not write. A link is never ours."""
    digests = _outputs(path)
    for entry in sorted(path.iterdir()):
        name = entry.name
        if entry.is_symlink():
            yield entry
        elif name == "checkpoints" and entry.is_dir():
            yield from (p for p in sorted(entry.iterdir()) if p.is_symlink() or not _is_snapshot(p))
        elif name == _RAY_LOGS and entry.is_dir():
            yield from (p for p in sorted(entry.rglob("*")) if p.is_symlink() or not _is_ray_log(p))
        elif not entry.is_file() or not (is_own_name(name) or _is_output(entry, digests)):
            yield entry


def clear(path: Path) -> None:
    """Removes a run, all but its marker. Raises ValueError, one line, before anything is removed, if the directory
    holds anything else."""
    check_run_dir(path, resume=False, overwrite=True)
    for entry in sorted(path.iterdir()):
        if entry.name == MARKER:
            continue
        if entry.is_dir():
            for inner in sorted(entry.rglob("*"), reverse=True):  # what is inside a directory comes before it
                inner.rmdir() if inner.is_dir() and not inner.is_symlink() else inner.unlink()
            entry.rmdir()
        else:
            entry.unlink()


def sweep(path: Path) -> int:
    """Removes temporary files of a writer that was killed, and returns how many there were. Only the owner of the lock
    may call it."""
    count = 0
    for folder in (path, path / "checkpoints"):
        if folder.is_dir() and not folder.is_symlink():
            for entry in folder.iterdir():
                if _TEMPORARY.fullmatch(entry.name) and entry.is_file() and not entry.is_symlink():
                    entry.unlink()
                    count += 1
    return count


def remember_output(file: str | Path) -> None:
    """Notes that this toolkit wrote `file`, if it lies in a run directory. --overwrite may then remove it as long as
    nobody changes it. Never raises OSError, since the file itself is written."""
    file = Path(file)
    if file.is_symlink() or not (file.parent / MARKER).is_file():
        return
    try:
        digests = {**_outputs(file.parent), file.name: _digest(file)}
        write_atomically(file.parent / OUTPUTS, (json.dumps(digests, indent=2) + "\n").encode())
    except OSError:
        return


def snapshot_path(path: Path, timesteps: int) -> Path:
    """Where the policy after so many steps is kept."""
    return path / "checkpoints" / f"policy_{timesteps:09d}.safetensors"


def snapshot_spacing(checkpoint_every: int, rollout_size: int) -> int:
    """Steps between two snapshots: `checkpoint_every`, rounded up to whole rollouts. Snapshots are of its multiples
    and of the training's end. So a run that was stopped and resumed has those of one that was never stopped."""
    return whole_rollouts(checkpoint_every, rollout_size)


def superfluous(steps: Iterable[int], spacing: int) -> list[int]:
    """The steps whose snapshots thinning removes. The newest NEWEST_SNAPSHOTS stay. Before them, the oldest snapshot of
    each range of ages stays; each range is twice as long as the range after it.

    spacing: steps between two snapshots."""
    ordered = sorted(steps)
    newest = ordered[-1] if ordered else 0
    ranges: set[int] = set()
    removed = []
    for step in ordered[:-NEWEST_SNAPSHOTS]:
        distance = max((newest - step) // max(spacing, 1), 1).bit_length()
        if distance in ranges:
            removed.append(step)
        ranges.add(distance)
    return removed


def thinned_count(number: int) -> int:
    """How many of `number` snapshots with equal distances thinning leaves, which is `number` less those of
    `superfluous`. It takes no time, however many there are."""
    if number <= NEWEST_SNAPSHOTS:
        return number
    # Distances of the others, in spacings, are NEWEST_SNAPSHOTS to number - 1. One stays for each number of bits.
    return NEWEST_SNAPSHOTS + (number - 1).bit_length() - NEWEST_SNAPSHOTS.bit_length() + 1


def thin(path: Path, timesteps: int, spacing: int) -> None:
    """Removes the superfluous snapshots up to `timesteps`."""
    steps = [step for step in snapshot_steps(path) if step <= timesteps]
    for step in superfluous(steps, spacing):
        snapshot_path(path, step).unlink(missing_ok=True)


def snapshot_steps(path: Path) -> list[int]:
    """The steps at which there are snapshots."""
    folder = path / "checkpoints"
    if not folder.is_dir():
        return []
    matches = (_SNAPSHOT.fullmatch(entry.name) for entry in folder.iterdir() if not entry.is_symlink())
    return sorted(int(match[1]) for match in matches if match is not None)


def _is_settings(file: Path) -> bool:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"env", "memory", "agent", "total_timesteps"} <= config.keys()


def is_own_name(name: str) -> bool:
    """Whether a run writes a file of that name into its directory."""
    return name in _PLAIN or bool(_OWN.fullmatch(name) or _TEMPORARY.fullmatch(name))


def is_of_a_run(path: Path) -> bool:
    """Whether a file at `path` would be one of those that a run writes into its directory, or into its checkpoints."""
    path = Path(os.path.realpath(path))
    if path.parent.name == "checkpoints" and _SNAPSHOT.fullmatch(path.name):
        return is_run(path.parent.parent)
    return is_own_name(path.name) and is_run(path.parent)


def _is_snapshot(file: Path) -> bool:
    return file.is_file() and bool(_SNAPSHOT.fullmatch(file.name) or _TEMPORARY.fullmatch(file.name))


def _is_ray_log(file: Path) -> bool:
    return file.is_dir() or file.suffix in (".log", ".out", ".err", ".txt", ".json", ".1", ".2", ".3", ".4", ".5")


def _outputs(path: Path) -> dict[str, Any]:
    """The checksums of the results in a run directory, by file name."""
    try:
        digests = json.loads((path / OUTPUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return digests if isinstance(digests, dict) else {}


def _is_output(file: Path, digests: dict[str, Any]) -> bool:
    """Whether this toolkit wrote the file, and nobody has changed it. digests: as `_outputs`."""
    return file.name in digests and digests[file.name] == _digest(file)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
