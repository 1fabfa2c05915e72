"""TensorBoard's event files. They are written in the training's own thread, so that errors are raised there and written
data has left the process."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

_proto: Any = event_pb2  # its classes are made when it is imported, which a type checker cannot see
_NAME = re.compile(r"events\.out\.tfevents\.(\d{10,12})\.")


class EventLog:
    """One event file in a folder. Every part of a run has a file of its own."""

    def __init__(self, folder: Path, purge_step: int | None = None):
        """purge_step: readers drop what earlier files have of this step and later ones, since these steps are done
        again. Raises OSError, as all methods do."""
        # Readers sort files by name: the name of a later part must come later, also within a second or after a change
        # of the clock.
        earlier = [int(match[1]) for path in folder.iterdir() if (match := _NAME.match(path.name))]
        second = max([int(time.time()), *(before + 1 for before in earlier)])
        name = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(2)}"
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._write(_proto.Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(_proto.Event(step=purge_step, session_log=_proto.SessionLog(status=_proto.SessionLog.START)))
        self._file.flush()

    def write(self, metrics: Mapping[str, float], step: int, picture: tuple[str, Any] | None = None) -> None:
        """The scalars of a step by name, and a picture uint8 [height, width, channels] with its name."""
        for name, value in metrics.items():
            self._write(_proto.Event(step=step, summary=summary.scalar(name, value)))
        if picture is not None:
            name, pixels = picture
            self._write(_proto.Event(step=step, summary=summary.image(name, pixels, dataformats="HWC")))
        self._file.flush()

    def close(self) -> None:
        """Finishes the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
