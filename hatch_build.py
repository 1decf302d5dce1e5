"""Generates the Python stubs from protos/ at build time; nothing generated is in git.

Runs as a hatchling hook (wheel and editable install) and by hand: `python hatch_build.py`.
"""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
PROTOS = ROOT / "protos"
OUT = ROOT / "clients" / "python"


def generate() -> None:
    """protos/modelledger/<service>/v1/*.proto -> clients/python/modelledger/<service>/v1/*_pb2*.py[i]"""
    import grpc_tools
    from grpc_tools import protoc

    well_known = importlib.resources.files(grpc_tools) / "_proto"
    sources = sorted(str(path) for path in (PROTOS / "modelledger").rglob("*.proto"))
    arguments = ["protoc", f"-I{PROTOS}", f"-I{well_known}"]
    arguments += [f"--{kind}_out={OUT}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    # The mypy plugins are scripts beside the interpreter, which need not be on PATH.
    beside = Path(sys.executable).parent
    for plugin in ("protoc-gen-mypy", "protoc-gen-mypy_grpc"):
        if (beside / plugin).exists():
            arguments.append(f"--plugin={plugin}={beside / plugin}")
    if protoc.main([*arguments, *sources]) != 0:
        raise SystemExit("protoc failed; see its messages above")


class StubsHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own hooks are written so
    """Hatchling build hook."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate()


if __name__ == "__main__":
    generate()
