"""The shape of the house: which file may import what, held by reading the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("trainer", "quantizer", "inference")

# Libraries that take seconds and hundreds of megabytes to import.
HEAVY = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gguf",
    "llama_cpp",
    "numpy",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
}

# What runs in a child process, and so may import them; no other file may, not even inside a function.
CHILD_PROCESS = {
    "trainer/run.py",
    "trainer/finetune.py",
    "quantizer/run.py",
    "quantizer/measure.py",
    "quantizer/merge.py",
    "quantizer/parity.py",
    "quantizer/pipeline.py",
    "quantizer/quality.py",
    "quantizer/quantise.py",
    "inference/batching.py",
    "inference/engine.py",
    "inference/llama.py",
    "clients/python/modelledger/demo/base.py",
    "clients/python/modelledger/demo/muon.py",
}

# What may import SQLAlchemy; CONTRIBUTING.md says which of them write SQL.
DATABASE = {
    "cosignature_store",
    "database",
    "driver",
    "group_store",
    "group_tables",
    "privileges",
    "store",
    "store_recorder",
    "tables",
    "view_store",
    "view_tables",
    "views",
    "whole_log",
    "witness/state",
    "writing",
}

# What an auditor needs: bytes in, verdict out. kit.artifacts is here for reading and hashing files.
PURE = {
    "add_checkpoint",
    "audit_source",
    "audit_state",
    "backup",
    "bundle",
    "bundle_documents",
    "bundle_files",
    "checkpoint",
    "cosignature",
    "edge",
    "envelope",
    "errors",
    "events",
    "fingerprint",
    "frontier",
    "key_rules",
    "kit/__init__",
    "kit/artifacts",
    "manifest",
    "merkle",
    "mlbom",
    "model_signature",
    "note",
    "policy",
    "possession",
    "proof_file",
    "provenance",
    "report",
    "resource_names",
    "rules",
    "statement",
    "strict_json",
    "strict_text",
    "strict_toml",
    "tiles",
    "trust",
    "trust_policy",
    "verify",
    "verify_artifacts",
    "verify_certificate",
    "verify_keys",
    "verify_statements",
    "verify_witnesses",
}


def _sources() -> Iterator[Path]:
    for folder in ("ledger", *SERVICES, "clients/python/modelledger"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_pb2" not in path.name:
                yield path


SOURCES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(), path.name) for path in _sources()}


def _module(name: str) -> str:
    """`ledger/kit/keys.py` -> `ledger.kit.keys`"""
    return name.removeprefix("clients/python/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {_module(name): name for name in SOURCES}


def _imports(tree: ast.AST, *, everywhere: bool) -> set[str]:
    """Full names of what is imported: at the top level only, or inside functions as well; never for types only."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports are not used here"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            found |= _imports(ast.Module(node.orelse, []), everywhere=everywhere)
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found |= _imports(node, everywhere=everywhere)
    return found


TOP = {name: _imports(tree, everywhere=False) for name, tree in SOURCES.items()}
ALL = {name: _imports(tree, everywhere=True) for name, tree in SOURCES.items()}


def _ours(imported: set[str]) -> set[str]:
    return {MODULES[module] for module in imported if module in MODULES}


def _reached(name: str) -> set[str]:
    """Our files that importing this one imports."""
    found, waiting = set(), {name}
    while waiting:
        one = waiting.pop()
        found.add(one)
        waiting |= _ours(TOP[one]) - found
    return found


def _packages(imported: set[str]) -> set[str]:
    return {module.split(".")[0] for module in imported}


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_one_way(name: str) -> None:
    others = {name for name in _packages(ALL[name]) if name in SERVICES}
    if name.startswith("ledger/"):
        assert not others, "the ledger knows none of its services"
    for service in SERVICES:
        if name.startswith(f"{service}/"):
            assert others <= {service}, "never sideways between services"
            of_ledger = {other for other in _ours(ALL[name]) if other.startswith("ledger/")}
            allowed = {f"ledger/{module}.py" for module in PURE} | {"ledger/__init__.py", "ledger/schema.py"}
            strangers = {other for other in of_ledger - allowed if not other.startswith("ledger/kit/")}
            assert not strangers, "a service uses ledger.kit and the pure modules"
    if name.startswith("ledger/kit/"):
        of_ledger = {other for other in _ours(ALL[name]) if other.startswith("ledger/")}
        allowed = {f"ledger/{module}.py" for module in PURE} | {"ledger/__init__.py", "ledger/schema.py"}
        assert not {other for other in of_ledger - allowed if not other.startswith("ledger/kit/")}


@pytest.mark.parametrize("name", sorted(f"ledger/{module}.py" for module in PURE))
def test_pure_modules_import_the_standard_library_cryptography_msgspec_and_each_other(name: str) -> None:
    ours = _ours(ALL[name])
    assert ours <= {f"ledger/{module}.py" for module in PURE} | {"ledger/__init__.py"}
    foreign = _packages(ALL[name]) - {"ledger", "cryptography", "msgspec", "__future__"} - sys.stdlib_module_names
    assert not foreign


@pytest.mark.parametrize("name", SOURCES)
def test_heavy_libraries_stay_in_child_processes(name: str) -> None:
    if name in CHILD_PROCESS:
        return
    assert not _packages(ALL[name]) & HEAVY, "only a file that runs in a child process may import these"
    for other in _reached(name):
        assert not _packages(TOP[other]) & HEAVY, f"importing {name} imports {other}"


def test_only_the_store_and_its_neighbours_know_the_database() -> None:
    knowing = {name for name in SOURCES if "sqlalchemy" in _packages(ALL[name])}
    assert knowing == {f"ledger/{module}.py" for module in DATABASE}


def test_the_list_of_child_process_files_is_not_longer_than_needed() -> None:
    assert set(SOURCES) >= CHILD_PROCESS
    for name in CHILD_PROCESS:
        reached = {other for one in {name, *_ours(ALL[name])} for other in _reached(one)}
        assert any(_packages(ALL[other]) & HEAVY for other in reached), f"{name} imports nothing heavy"


def test_the_ledger_package_imports_nothing() -> None:
    assert not (ROOT / "ledger/__init__.py").read_text().strip()


@pytest.mark.parametrize("name", [name for name in SOURCES if not name.startswith("ledger/__init__")])
def test_files_have_one_idea(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= 400, "a file of more than 400 lines has two ideas"


def test_an_auditor_needs_no_database_and_no_grpc() -> None:
    pure = sorted(_module(f"ledger/{module}.py") for module in PURE)
    script = f"import sys, {', '.join(pure)}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout.split()
    assert not {"grpc", "google", "sqlalchemy", "eventsourcing", *HEAVY} & set(loaded)
