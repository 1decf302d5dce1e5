"""From the bytes of tokens to text that may be shown: whole characters only, and never part of a stop string.

A token may end in the middle of a UTF-8 character, and a stop string may be spread over many tokens; so the
last few bytes or characters wait until it is certain what they are.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class AnswerText:
    """Feed it token bytes; it hands out text.

    Law: the joined output is the decoded input, cut before the stop string that is complete first.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        # A model may produce bytes that are no UTF-8 at all; they become U+FFFD instead of an error.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """Text that is now certain, possibly empty. Sets `stopped` when a stop string is complete."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was still waiting, once no more tokens come."""
        text = self._release(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            # The one that is complete first, so the result does not depend on how the text was cut into tokens.
            _, at = min(found)
            text, self._held = self._held[:at], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
