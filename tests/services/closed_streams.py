"""Two questions to a helper, from a process whose own streams may be closed, see test_helper.py."""

from __future__ import annotations

import sys
from pathlib import Path

from ledger.kit.helper import Helper, answered

if __name__ == "__main__":
    helper: Helper[str] = Helper("tests.services.odd_answers")
    answered([helper], 30)
    answers = []
    for question in ("one", "two"):
        if helper.ready and helper.ask(question, question):
            answered([helper], 30)
            answers += [answer for _, answer in helper.answers()]
    helper.close()
    Path(sys.argv[1]).write_text(" ".join(answers))
