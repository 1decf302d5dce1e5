"""TOML with bounds: whatever the text, one ValueError, and soon.

The standard library's reader has no limit on nesting but the interpreter's stack, and its time grows with the square of
the parts of a dotted key (20,000 of them: eleven seconds).
"""

from __future__ import annotations

import tomllib
from typing import Any

MAX_DOTS = 100  # in one line, where a key stands whole


def loads(data: bytes) -> dict[str, Any]:
    """Parse UTF-8 TOML bytes. Raises ValueError naming what is wrong."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.count(b".") > MAX_DOTS:
            raise ValueError(f"line {number} has more than {MAX_DOTS} dots")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
