"""What a vector file is made of: named cases with what is given and what is expected."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

Case = dict[str, Any]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def octets(data: bytes) -> Any:
    """Bytes as the files write them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": b64(data)}


def good(name: str, expect: Any, **given: Any) -> Case:
    return {"name": name, **given, "expect": expect}


def bad(name: str, error: Any, **given: Any) -> Case:
    return {"name": name, **given, "error": error}


def written(cases: Sequence[Case]) -> str:
    """A file of cases, one to a line."""
    return "[\n" + ",\n".join(f"  {json.dumps(case, ensure_ascii=False)}" for case in cases) + "\n]\n"
