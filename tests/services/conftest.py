"""Models, houses and stories for the service tests."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.audit import verify_whole_log
from tests.databases import StoreFactory, sqlite_stores
from tests.house import House
from tests.log_story import Story
from tests.logs import Log
from tests.quantizer_jobs import digest
from tests.registry_calls import serving
from tests.target import Target, attacked

__all__ = ["sqlite_stores"]


@pytest.fixture(scope="session")
def tiny_gguf(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as an F16 GGUF."""
    workdir = tmp_path_factory.mktemp("gguf")
    spec = workdir / "spec.json"
    spec.write_text(
        json.dumps(
            {
                "id": "x",
                "workdir": str(workdir),
                "name": "tiny",
                "base": {"key": "tiny", "path": str(tiny_base), "sha256": digest(tiny_base)},
                "adapters": [],
                "types": ["F16"],
                "threads": 1,
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "quantizer.run", str(spec)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    (output,) = [message for message in messages if message["type"] == "output"]
    assert output["quantisation"] == "F16"
    return Path(output["path"])


@pytest.fixture(scope="session")
def endless_gguf(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with the end tokens renamed to ordinary words: every answer fills the context."""
    data = tiny_gguf.read_bytes()
    for name in (b"<|im_end|>", b"<|endoftext|>", b"tokenizer.ggml.eos_token_id"):
        assert name in data
        data = data.replace(name, name[:-3] + b"X" + name[-2:])
    path = tmp_path_factory.mktemp("endless") / "endless.gguf"
    path.write_bytes(data)
    return path


@pytest.fixture(scope="session")
def other_gguf(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights under another digest: without a chat template."""
    data = tiny_gguf.read_bytes()
    assert data.count(b"tokenizer.chat_template") == 1
    path = tmp_path_factory.mktemp("other") / "other.gguf"
    path.write_bytes(data.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX"))
    return path


@pytest.fixture(scope="module")
def house(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Ledger, trainer, quantizer and inference on one data directory; a copy of the tiny base in the bases folder."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(tiny_base, folder / "bases" / "tiny-base")
    with closing(House(folder / "data", folder / "bases")) as house:
        yield house


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Services to send anything to."""
    with attacked(tmp_path_factory.mktemp("target")) as target:
        yield target


@pytest.fixture
def log(sqlite_stores: StoreFactory) -> Iterator[Log]:
    """A log that is verified as a whole when the test is over."""
    log = Log(sqlite_stores())
    yield log
    verify_whole_log(log.store)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A log to tell the life of some models in."""
    return Story(tmp_path)


@pytest.fixture
def ask(story: Story) -> Callable[[Callable[[Any], Awaitable[Any]]], Any]:
    """Run a coroutine function that is given a stub for the registry of the story."""

    def run(questions: Callable[[Any], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with serving(story) as stub:
                return await questions(stub)

        return asyncio.run(main())

    return run
