"""Makes vector files: `python -m tests.vectors.make`. The same bytes every time.

Nothing of the ledger is imported: every input is written here from the specification, with hashlib and cryptography, so
that a case is not true merely because our own writer and reader agree. What the files mean is in README.md.
"""

from __future__ import annotations

from pathlib import Path

from tests.vectors.make import events, notes, trees
from tests.vectors.make.cases import written

FILES = {**trees.FILES, **notes.FILES, **events.FILES}

if __name__ == "__main__":
    for name, cases in FILES.items():
        Path(__file__).parents[1].joinpath(f"{name}.json").write_text(written(cases()))
