"""Laws of the registry view, over random histories that the real rules accepted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modelledger.ledger.v1 import registry_pb2

from ledger import registry_read, strict_json, views
from ledger.errors import InvalidName, Refused
from ledger.reading import read_event
from ledger.registry_view import REGISTRY_VIEW, everything, fold_registry, is_revoked, made_from, node
from ledger.resource_names import ModelName, Number, parse_number, parse_version
from ledger.statement import Artifact
from ledger.views import ViewRunner
from tests.log_story import Story

ORG = "acme"
MODELS = ("a", "a-b")  # one name is the beginning of the other

steps = st.lists(
    st.one_of(
        st.tuples(st.just("version"), st.sampled_from(MODELS), st.integers(1, 2), st.integers(8, 11)),
        st.tuples(st.just("activate"), st.sampled_from(MODELS), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("revoke"), st.sampled_from(MODELS), st.integers(0, 9), st.none()),
        st.tuples(st.just("quantize"), st.sampled_from(MODELS), st.integers(0, 9), st.none()),
        st.tuples(st.just("withdraw"), st.sampled_from(MODELS), st.integers(0, 1), st.none()),
        st.tuples(st.just("fold"), st.sampled_from(MODELS), st.none(), st.none()),
    ),
    max_size=14,
)
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class History:
    """Plays steps into a log and keeps its own, simple account of what must come of them."""

    def __init__(self, folder: Path) -> None:
        self.story = Story(folder)
        self.bases = [self.story.base("tiny"), self.story.base("small")]
        self.data = self.story.dataset(ORG, "help")
        self.versions: dict[str, dict[Number, list[list[Artifact]]]] = {model: {} for model in MODELS}
        self.active: dict[str, str] = {}
        self.runs = 0

    def play(self, script: list[tuple[Any, ...]]) -> None:
        for verb, model, first, second in script:
            try:
                getattr(self, verb)(model, first, second)
            except Refused:
                continue  # the log's rules refused it (something was revoked), so nothing happened

    def version(self, model: str, major: int, minor: int) -> None:
        """A version over both bases; one that continues the newest where there is one. A number may come twice."""
        self.runs += 1
        run, made = f"run-{self.runs}", self.versions[model]
        earlier = list(made.values())[-1] if made else [[], []]
        parents = [adapter for chain in earlier for adapter in chain[-1:]]  # so that a lineage has many steps
        new = self.story.train(run, self.bases, self.data, parents)
        chains = [[*chain, adapter] for chain, adapter in zip(earlier, new, strict=True)]
        self.story.version(ORG, model, (major, minor), run, self.bases, self.data, chains)
        made.setdefault(Number(major, minor), chains)

    def activate(self, model: str, pick: int, missing: bool) -> None:
        if made := list(self.versions[model].items()):
            number, chains = made[pick % len(made)]
            text = "v7.7" if missing else str(number)
            self.story.activate(ORG, model, text, [chain[-1] for chain in chains])
            if not missing:
                self.active[model] = text

    def revoke(self, model: str, pick: int, _: None) -> None:
        if made := list(self.versions[model].items()):
            number, chains = made[pick % len(made)]
            self.story.revoke(ORG, model, str(number), [chain[-1] for chain in chains])

    def quantize(self, model: str, pick: int, _: None) -> None:
        if made := list(self.versions[model].items()):
            number, chains = made[pick % len(made)]
            self.runs += 1
            self.story.quantize(f"q-{self.runs}", ORG, model, str(number), self.bases[0], chains[0])

    def withdraw(self, model: str, pick: int, _: None) -> None:
        self.story.withdraw_base(self.bases[pick])

    def fold(self, model: str, first: None, second: None) -> None:
        """Bring the view up to date in the middle of the history, so that batches fall anywhere."""
        self.catch_up()

    def catch_up(self) -> None:
        """As a process that is started, folds what is new, and ends."""
        view = ViewRunner(self.story.store, REGISTRY_VIEW, fold_registry)
        view.start()
        view.wait_for(self.story.store.head.size)
        view.stop()

    def rows(self) -> tuple[int, list[tuple[str, bytes]]]:
        with self.story.store.views.open(REGISTRY_VIEW) as rows:
            return rows.next_position, list(everything(rows, ""))


@contextmanager
def played(script: list[tuple[Any, ...]]) -> Iterator[History]:
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder))
        history.play(script)
        history.catch_up()
        yield history
        history.story.store.close()


@few
@given(script=steps, batch=st.integers(1, 7))
def test_a_rebuilt_view_has_the_same_bytes(script: list[tuple[Any, ...]], batch: int) -> None:
    with played(script) as history, pytest.MonkeyPatch.context() as patch:
        incremental = history.rows()
        patch.setattr(views, "BATCH", batch)
        ViewRunner(history.story.store, REGISTRY_VIEW, fold_registry).rebuild()
        assert history.rows() == incremental


@few
@given(script=steps)
def test_versions_are_in_order_and_at_most_one_is_active(script: list[tuple[Any, ...]]) -> None:
    with played(script) as history, history.story.store.views.open(REGISTRY_VIEW) as rows:
        for model, made in history.versions.items():
            name = ModelName(ORG, model)
            documents = [strict_json.loads(d) for _, d in everything(rows, f"version/{name}/")]
            listed: list[registry_pb2.Version] = [registry_read.version(rows, name, d) for d in documents]
            assert [v.version for v in listed] == [str(number) for number in sorted(made)]
            assert [v.version for v in listed if v.active] == (
                [history.active[model]] if model in history.active else []
            )
            # The first record of a number counts.
            chains = {v.version: [[a.sha256 for a in adapter.chain] for adapter in v.record.adapters] for v in listed}
            assert chains == {str(n): [[a.sha256 for a in chain] for chain in cs] for n, cs in made.items()}


@few
@given(script=steps)
def test_exactly_the_descendants_of_what_was_revoked_are_tainted(script: list[tuple[Any, ...]]) -> None:
    with played(script) as history:
        store = history.story.store
        parents: dict[str, set[str]] = {}
        revoked: set[str] = set()
        for row in store.select(limit=None):
            event = read_event(row)
            for subject in event.subjects:
                if event.kind in ("TrainingCompleted", "QuantizationCompleted"):
                    made = {material.sha256 for material in made_from(subject, event.materials)}
                    parents.setdefault(subject.sha256, set()).update(made)
                if event.kind in ("VersionRevoked", "BaseModelWithdrawn"):
                    revoked.add(subject.sha256)

        def bad(sha256: str) -> bool:
            return sha256 in revoked or any(bad(parent) for parent in parents.get(sha256, ()))

        with store.views.open(REGISTRY_VIEW) as rows:
            for key, document in everything(rows, "node/"):
                assert is_revoked(strict_json.loads(document)) == bad(key.removeprefix("node/"))


def test_taint_goes_down_every_step_and_into_what_is_made_later() -> None:
    """a, b and c each continue the one before; a is revoked; then d continues c."""
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder))
        story, base = history.story, history.bases[:1]
        made: list[Artifact] = []
        for run in "abc":
            made += story.train(run, base, history.data, made[-1:])
        story.version(ORG, "a", (1, 0), "a", base, history.data, [made[:1]])
        story.revoke(ORG, "a", "v1.0", made[:1])
        made += story.train("d", base, history.data, made[-1:])
        history.catch_up()
        with story.store.views.open(REGISTRY_VIEW) as rows:
            assert [is_revoked(node(rows, adapter.sha256)) for adapter in made] == [True] * 4
            assert not is_revoked(node(rows, base[0].sha256))
        story.store.close()


def test_an_adapter_is_not_made_from_the_other_bases_of_its_run() -> None:
    def artifact(name: str) -> Artifact:
        return Artifact(name, name.encode().hex().ljust(64, "0")[:64])

    one, other = artifact("base-models/one"), artifact("base-models/other")
    data, earlier = artifact("datasets/acme/help"), artifact("adapters/run-1/one")
    materials = (one, other, data, earlier, artifact("adapters/run-1/other"))
    assert list(made_from(artifact("adapters/run-2/one"), materials)) == [one, data, earlier]
    assert list(made_from(artifact("gguf/q/file"), materials)) == list(materials)


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_a_number_reads_back(major: int, minor: int) -> None:
    assert parse_number(str(Number(major, minor)), "version") == Number(major, minor)


@given(st.text(max_size=40))
def test_no_other_text_is_a_version(text: str) -> None:
    try:
        name, number = parse_version(f"orgs/o/models/m/versions/{text}", "name")
    except InvalidName:
        return
    assert (str(name), str(number)) == ("o/m", text)
