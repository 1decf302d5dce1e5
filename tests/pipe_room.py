"""One user's pipes have a limit, pipe(7): a process with more helpers than fit into it has those that fit."""

from __future__ import annotations

import errno
import fcntl
from typing import Any

import pytest

from ledger.kit.helper import MAX_UNANSWERED


def leave_room_for(pipes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so many pipes of helpers be made as large as they want to be, and no more."""
    room, resize = [None] * pipes, fcntl.fcntl

    def limited(file: Any, command: int, argument: int = 0) -> Any:
        if command == fcntl.F_SETPIPE_SZ and argument == MAX_UNANSWERED:
            if not room:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            room.pop()
        return resize(file, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", limited)
