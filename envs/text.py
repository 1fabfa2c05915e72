"""Characters of a text: say which one comes next.

An episode is a piece of `stream_length` characters of one part of a text (`envs.characters`); it begins at a place that
is drawn evenly. The observation is the present character, the action the next one, at every step. Characters are bytes,
so that there are 256 for every text. Names: B environments, R rows, N characters of the part.

Nothing says success. The score is bits per character, -log2 of the probability of the right action, which an evaluation
counts (`bits`). The reward, the share of right actions, comes with the last step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces

from expire_span_rl.envs.characters import PARTS, read_characters, standard_library
from expire_span_rl.envs.core import MOST_STEPS, Core, drawn_between
from expire_span_rl.envs.errors import EnvError, expect_choice, expect_int
from expire_span_rl.envs.faces import BatchedVectorEnv, SingleEnv

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Place

CHARACTERS = 256
LONGEST_NAME = 1000  # characters of a path
_HORIZON = 256  # steps: nothing says how long a character is of use
_COLUMNS, _LINES = 48, 4  # of the picture
_SPELLED = {9: "tab", 10: "line break", 32: "space"}
NAMES = tuple(_SPELLED.get(i, chr(i) if 32 < i < 127 else f"byte {i}") for i in range(CHARACTERS))
"""Of the 256 characters, for those who look at a policy."""


class Text(Core):
    """B pieces of a text at once.

    Args:
        file: path of a text file, or of a folder of them; "": Python's standard library.
        part: which part of the text, "train", "validation" or "test".
        stream_length: characters of the longest piece; a shorter part is one piece.
        min_stream_length: of the shortest; 0: as `stream_length`, so that all are alike. Lengths are uniform.

    Raises EnvError for a text that cannot be read, and for a value out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **Core.metadata,
        "difficulty_key": "length",
        "hides_previous_action": True,
        "ratios": {"accuracy": ("right", "asked")},
        "action_names": NAMES,
        "observation_names": NAMES,
    }
    state_fields = ("length", "offset", "right")

    def __init__(
        self,
        num_envs: int,
        *,
        file: str = "",
        part: str = "validation",
        stream_length: int = 500,
        min_stream_length: int = 0,
    ) -> None:
        if not isinstance(file, str) or len(file) > LONGEST_NAME or "\0" in file:
            raise EnvError(
                f"file: expected the path of a text, of at most {LONGEST_NAME} characters, got another value"
            )
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
        self.memory_horizon = min(self.longest, _HORIZON)
        super().__init__(num_envs)
        self.length = np.full(num_envs, self.longest)
        self.offset = np.zeros(num_envs, np.int64)
        self.right = np.zeros(num_envs, np.int64)

    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform(rows, 2)  # [2,R]
        self.length[rows] = drawn_between(draws[0], self.shortest, self.longest, "uniform")
        places = len(self.characters) - self.length[rows]  # where a piece, and the character after it, may begin
        self.offset[rows] = (draws[1] * places).astype(np.int64)
        self.right[rows] = 0

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.right += actions == self._at(self.steps)
        terminated = self.steps >= self.length
        return np.where(terminated, self.right / self.length, 0.0), terminated, np.zeros_like(terminated)

    def observe(self) -> np.ndarray:
        return self._at(self.steps)

    def final_info(self) -> dict[str, np.ndarray]:
        """`right` of `asked` characters, and the piece's `length`."""
        return {"right": self.right.copy(), "asked": self.length.copy(), "length": self.length.copy()}

    def target(self) -> np.ndarray:
        """The next character."""
        return self._at(self.steps + 1)

    def decisions(self) -> np.ndarray:
        """Every step."""
        return np.ones(self.num_envs, bool)

    def render(self, row: int) -> np.ndarray:
        """The last characters, the present one in front of a bar."""
        from PIL import Image, ImageDraw, ImageFont

        shown = _COLUMNS * _LINES
        now = int(self.offset[row] + self.steps[row])
        seen = self.characters[max(int(self.offset[row]), now - shown + 1) : now + 1]
        text = "".join(chr(c) if 32 <= c < 127 else "." for c in seen.tolist()) + "|"
        font = ImageFont.load_default_imagefont()
        lines = [text[i : i + _COLUMNS] for i in range(0, len(text), _COLUMNS)][-_LINES:]
        picture = Image.new("RGB", (_COLUMNS * 6 + 8, _LINES * 12 + 8))
        ImageDraw.Draw(picture).multiline_text((4, 4), "\n".join(lines), "white", font, spacing=1)
        return np.asarray(picture).copy()

    def place(self, row: int) -> Place | None:
        return None

    def _at(self, place: np.ndarray) -> np.ndarray:
        """int64 [B]: the characters at places [B] of the pieces."""
        return self.characters[self.offset + place].astype(np.int64)


class TextEnv(SingleEnv, core=Text):
    """`gym.make("Text-v0")`."""


class TextVectorEnv(BatchedVectorEnv, core=Text):
    """`gym.make_vec("Text-v0", num_envs)`."""
