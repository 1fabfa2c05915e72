"""Characters of a text: the task is to predict the next one.

An episode is a piece of up to `stream_length` characters of one part of a text (`envs.characters`). Its beginning is
drawn uniformly. At every step, the observation is the present character and the right action is the next one.
Characters are bytes, so that every text has the same 256. Names: B environments, R rows, N characters of the part.

The task does not define success. The score is bits per character, -log2 of the probability of the right action. An
evaluation measures it (`bits`). The reward, the share of right actions, comes with the last step.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces

from expire_span_rl.envs.characters import PARTS, read_characters, standard_library
from expire_span_rl.envs.core import MOST_STEPS, EnvCore, draw_integers
from expire_span_rl.envs.core_adapters import BatchedVectorEnv, SingleEnv
from expire_span_rl.envs.errors import EnvError, expect_choice, expect_int

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Place

CHARACTERS = 256
MAX_PATH = 1000  # characters of a path
_HORIZON = 256  # steps; an assumption, since the task does not say how long a character is useful
_COLUMNS = 48  # characters of a line in the picture
_LINES = 4  # lines of the picture
_CHARACTER_WIDTH = 6  # pixels
_LINE_HEIGHT = 12  # pixels
_MARGIN = 4  # pixels on each side
_BLANK_NAMES = {9: "tab", 10: "line break", 32: "space"}
NAMES = tuple(_BLANK_NAMES.get(i, chr(i) if 32 < i < 127 else f"byte {i}") for i in range(CHARACTERS))
"""Names of the 256 characters, for the viewer."""


_TEXT_FIELDS = ("text_size", "text_digest")
"""Fields of the state that say of which text it is: the characters of the part, and their CRC-32."""


class Text(EnvCore):
    """B pieces of a text at once.

    Args:
        file: path of a text file, or of a folder of text files; "": Python's standard library.
        part: the part of the text: "train", "validation" or "test".
        stream_length: characters of the longest piece. A shorter part of the text is one piece.
        min_stream_length: characters of the shortest piece; 0: `stream_length`, so that all lengths are equal. Lengths
            are uniform.

    Raises EnvError for a text that cannot be read, and for a value out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **EnvCore.metadata,
        "difficulty_key": "length",
        "hides_previous_action": True,
        "ratios": {"accuracy": ("right", "asked")},
        "action_names": NAMES,
        "observation_names": NAMES,
    }
    state_fields = ("length", "offset", "right", *_TEXT_FIELDS)

    def __init__(
        self,
        num_envs: int,
        *,
        file: str = "",
        part: str = "validation",
        stream_length: int = 500,
        min_stream_length: int = 0,
    ) -> None:
        if not isinstance(file, str) or len(file) > MAX_PATH or "\0" in file:
            raise EnvError(f"file: expected the path of a text, of at most {MAX_PATH} characters, got another value")
        self.part = expect_choice("part", part, PARTS)
        expect_int("stream_length", stream_length, 1, MOST_STEPS)
        expect_int("min_stream_length", min_stream_length, 0, stream_length)
        self.characters = read_characters(file or standard_library(), self.part)  # [N]
        if len(self.characters) < 2:
            raise EnvError(f"file: expected at least 2 characters for {self.part}, got {len(self.characters)}")
        self.longest = min(stream_length, len(self.characters) - 1)
        self.shortest = min(min_stream_length or self.longest, self.longest)
        self.single_observation_space = spaces.Discrete(CHARACTERS)
        self.single_action_space = spaces.Discrete(CHARACTERS)
        self.longest_episode = self.longest
        self.memory_horizon = min(self.longest, _HORIZON)
        super().__init__(num_envs)
        self.length = np.full(num_envs, self.longest)
        self.offset = np.zeros(num_envs, np.int64)
        self.right = np.zeros(num_envs, np.int64)
        self.text_size = np.full(num_envs, len(self.characters))
        self.text_digest = np.full(num_envs, zlib.crc32(self.characters.data))

    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform(rows, 2)  # [2,R]
        self.length[rows] = draw_integers(draws[0], self.shortest, self.longest, "uniform")
        # The part must also have the character after the piece, which is the last one to predict.
        num_offsets = len(self.characters) - self.length[rows]
        self.offset[rows] = (draws[1] * num_offsets).astype(np.int64)
        self.right[rows] = 0

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.right += actions == self._characters_at(self.steps)
        terminated = self.steps >= self.length
        return np.where(terminated, self.right / self.length, 0.0), terminated, np.zeros_like(terminated)

    def observe(self) -> np.ndarray:
        return self._characters_at(self.steps)

    def complete_state(self, state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Those of earlier versions do not say of which text they are."""
        return {**{name: getattr(self, name) for name in _TEXT_FIELDS}, **state}

    def check_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Raises EnvError for a state of another text."""
        size = len(self.characters)
        ends = state["offset"] + state["length"]
        if any((state[name] != getattr(self, name)).any() for name in _TEXT_FIELDS):
            had = f"{int(state['text_size'].max()):,}"
        elif (state["offset"] < 0).any() or (ends >= size).any() or (state["steps"] > state["length"]).any():
            had = f"more than {int(ends.max()):,}"
        else:
            return
        raise EnvError(
            f"file: expected the text as it was, with {had} characters for {self.part}, got another one, with "
            f"{size:,}; begin a new run to train on it"
        )

    def final_info(self) -> dict[str, np.ndarray]:
        """`right` (right actions), `asked` (all actions), and `length` (characters of the piece)."""
        return {"right": self.right.copy(), "asked": self.length.copy(), "length": self.length.copy()}

    def target(self) -> np.ndarray:
        """The next character."""
        return self._characters_at(self.steps + 1)

    def decisions(self) -> np.ndarray:
        """True at every step."""
        return np.ones(self.num_envs, bool)

    def render(self, row: int) -> np.ndarray:
        """The present character, which a bar follows, and the characters before it."""
        from PIL import Image, ImageDraw, ImageFont

        offset = int(self.offset[row])
        position = offset + int(self.steps[row])
        characters = self.characters[max(offset, position - _COLUMNS * _LINES + 1) : position + 1]
        text = "".join(chr(c) if 32 <= c < 127 else "." for c in characters.tolist()) + "|"
        font = ImageFont.load_default_imagefont()
        lines = [text[i : i + _COLUMNS] for i in range(0, len(text), _COLUMNS)][-_LINES:]
        size = (_COLUMNS * _CHARACTER_WIDTH + 2 * _MARGIN, _LINES * _LINE_HEIGHT + 2 * _MARGIN)
        picture = Image.new("RGB", size)
        draw = ImageDraw.Draw(picture)
        draw.multiline_text((_MARGIN, _MARGIN), "\n".join(lines), fill="white", font=font, spacing=1)
        return np.asarray(picture).copy()

    def place(self, row: int) -> Place | None:
        return None

    def _characters_at(self, position: np.ndarray) -> np.ndarray:
        """The character at each position [B] of the pieces: int64 [B]."""
        return self.characters[self.offset + position].astype(np.int64)


class TextEnv(SingleEnv, core=Text):
    """`gym.make("Text-v0")`."""


class TextVectorEnv(BatchedVectorEnv, core=Text):
    """`gym.make_vec("Text-v0", num_envs)`."""
