"""Logs for tests: enrolled actors, and signed events of many kinds about artifacts that fit together."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ledger import envelope as dsse
from ledger import possession, statement
from ledger.committer import Appended, Committer, Request
from ledger.envelope import Signer
from ledger.events import LEDGER, ROLES, TRAINER
from ledger.kit.keys import FileSigner
from ledger.sequencer import Sequencer
from ledger.statement import Artifact, Event
from ledger.store import Store

ORG = "acme"


def signer(number: int) -> FileSigner:
    """The same P-256 key for the same number, so that processes can share actors."""
    key = ec.derive_private_key(1_000 + number, ec.SECP256R1())
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return FileSigner(key, der, sha256(der).hexdigest())


def ed25519_signer(number: int) -> FileSigner:
    """The same for Ed25519."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes((1_000 + number).to_bytes(32, "big"))
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return FileSigner(key, der, sha256(der).hexdigest())


ACTORS = {role: signer(number) for number, role in enumerate(ROLES)}


def artifact(name: str, content: str = "") -> Artifact:
    """An artifact whose bytes are its name, or `content`."""
    return Artifact(name, sha256((content or name).encode()).hexdigest())


def ref(item: Artifact) -> dict[str, Any]:
    """How an event's data names an artifact."""
    return {"name": item.name, "sha256": item.sha256}


def signed(event: Event, *signers: FileSigner) -> bytes:
    """The entry, signed by its actor unless others are given."""
    return dsse.sign(statement.encode(event), signers or [ACTORS[event.actor]])


def dataset(name: str, key: Signer) -> tuple[str, bytes]:
    """A dataset's registration in a log that is served: the event's id, and its entry."""
    stream = f"datasets/{ORG}/{name}"
    data = {"org": ORG, "name": name, "form": "messages", "examples": 100, "band": "minimum"}
    event = Event("DatasetRegistered", stream, 1, TRAINER, (artifact(stream),), data)
    return event.id, dsse.sign(statement.encode(event), [key])


def event_of(entry: bytes) -> Event:
    return statement.decode(dsse.parse(entry).payload)


def enrolment(actor: str, key: FileSigner, role: str, version: int = 1) -> Event:
    data = {"actor": actor, "publicKey": base64.b64encode(key.public_key_der).decode(), "role": role}
    subject = Artifact(f"actors/{actor}", key.keyid)
    return Event("ActorEnrolled", f"actors/{actor}", version, LEDGER, (subject,), data)


def rotation(actor: str, old: FileSigner, new: FileSigner, version: int, **data: Any) -> Event:
    """The event with which `new` replaces `old`, proven to be held."""
    proof = base64.b64encode(possession.prove(actor, old.keyid, new)).decode()
    public = base64.b64encode(new.public_key_der).decode()
    said = {"actor": actor, "publicKey": public, "possession": proof, **data}
    return Event("ActorKeyRotated", f"actors/{actor}", version, LEDGER, (Artifact(f"actors/{actor}", new.keyid),), said)


def founding(store: Store) -> list[list[bytes]]:
    """The requests that make a new log: its first event, then one actor for each role, named as the role."""
    key = ACTORS[LEDGER]
    origin, public = store.signer.name, base64.b64encode(key.public_key_der).decode()
    created = Event(
        "LogCreated",
        "log",
        1,
        LEDGER,
        (artifact(f"log/{origin}"), Artifact(f"actors/{LEDGER}", key.keyid)),
        {"origin": origin, "logVkey": store.signer.vkey(), "actorPublicKey": public},
    )
    return [[signed(created)], [signed(enrolment(role, ACTORS[role], role)) for role in ROLES]]


class InProcess:
    """A writer inside this process, in a thread of its own."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._thread = ThreadPoolExecutor(1)

    async def commit(self, requests: Sequence[Request]) -> list[Appended | Exception]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._committer.commit, requests)

    async def close(self) -> None:
        """The thread stays: a test may use the sequencer on several event loops."""


def in_process(committer: Committer) -> Sequencer:
    return Sequencer(InProcess(committer))


class Log:
    """A log under test. Founded when its store is empty; `sign` counts stream versions by itself."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.committer = Committer(store)
        self.sequencer = in_process(self.committer)
        if store.head.size == 0:
            for request in founding(store):
                self.committer.append(request)
        self._versions: dict[str, int] = {}
        for row in store.select(limit=None):
            self._versions[row.stream] = row.version

    def append(self, *entries: bytes) -> Appended:
        return self.committer.append(entries)

    def event(
        self,
        actor: str,
        kind: str,
        stream: str,
        subjects: Iterable[Artifact],
        data: Mapping[str, Any],
        materials: Iterable[Artifact] = (),
        **more: Any,
    ) -> Event:
        """The next event of a stream, unless `version` is given."""
        version = more.pop("version", None) or self._versions.get(stream, 0) + 1
        self._versions[stream] = version
        return Event(kind, stream, version, actor, tuple(subjects), data, tuple(materials), **more)

    def sign(self, *arguments: Any, **more: Any) -> bytes:
        return signed(self.event(*arguments, **more))

    def base(self, key: str = "tiny") -> bytes:
        name = f"base-models/{key}"
        return self.sign(
            "trainer", "BaseModelRegistered", name, [artifact(name)], {"key": key, "architecture": "llama", "size": "9"}
        )

    def dataset(self, name: str = "faq") -> bytes:
        stream = f"datasets/{ORG}/{name}"
        data = {"org": ORG, "name": name, "examples": 100, "band": "minimum"}
        return self.sign("trainer", "DatasetRegistered", stream, [artifact(stream)], data)

    def datasets(self, number: int, start: int = 0) -> list[bytes]:
        return [self.dataset(f"d{i}") for i in range(start, start + number)]

    def training(self, run: str = "run1", base: str = "tiny", dataset: str = "faq", model: str = "bot") -> list[bytes]:
        """A run from its request to an active version."""
        stream, of_model = f"training-runs/{run}", f"models/{ORG}/{model}"
        request, adapter = artifact(f"requests/{run}"), artifact(f"adapters/{run}/{base}")
        folder, rows = artifact(f"base-models/{base}"), artifact(f"datasets/{ORG}/{dataset}")
        asked = {"run": run, "org": ORG, "model": model, "bases": [base], "dataset": f"{ORG}/{dataset}"}
        trained = {"key": base, "baseSha256": folder.sha256, "adapter": ref(adapter), "epochs": 1}
        chain = {"base": base, "baseSha256": folder.sha256, "chain": [ref(adapter)]}
        version = {"org": ORG, "model": model, "version": "v1.0"}
        return [
            self.sign("trainer", "TrainingRequested", stream, [request], asked, [folder, rows]),
            self.sign("trainer", "TrainingStarted", stream, [request], {"run": run, "worker": "w", "attempt": 1}),
            self.sign(
                "trainer", "EpochCompleted", stream, [request], {"run": run, "base": base, "epoch": 1, "epochs": 1}
            ),
            self.sign(
                "trainer",
                "TrainingCompleted",
                stream,
                [adapter],
                {"run": run, "trained": [trained], "datasetSha256": rows.sha256},
                [folder, rows],
            ),
            self.sign(
                "trainer",
                "VersionCreated",
                of_model,
                [adapter],
                {"org": ORG, "model": model, "major": 1, "run": run, "adapters": [chain]},
                [folder, rows],
            ),
            self.sign("registry", "VersionActivated", of_model, [adapter], {**version, "reason": "first"}),
        ]

    def quantization(
        self, number: str = "q1", run: str = "run1", base: str = "tiny", model: str = "bot"
    ) -> list[bytes]:
        """A quantisation of that run's version."""
        stream = f"quantizations/{number}"
        request, file = artifact(f"requests/{number}"), artifact(f"gguf/{number}/bot.Q8_0.gguf")
        used = [artifact(f"base-models/{base}"), artifact(f"adapters/{run}/{base}")]
        about = {"quantization": number, "org": ORG, "model": model, "base": base}
        return [
            self.sign("quantizer", "QuantizationRequested", stream, [request], {**about, "types": ["Q8_0"]}, used),
            self.sign(
                "quantizer",
                "QuantizationStarted",
                stream,
                [request],
                {"quantization": number, "worker": "w", "attempt": 1},
            ),
            self.sign(
                "quantizer",
                "QuantizationCompleted",
                stream,
                [file],
                {**about, "files": [{"type": "Q8_0", "file": ref(file)}]},
                used,
            ),
        ]

    def history(self) -> list[bytes]:
        """One of everything, in order: thirteen events of thirteen kinds, ending with a withdrawn base."""
        entries = [self.base(), self.dataset(), *self.training(), *self.quantization()]
        adapter, base = artifact("adapters/run1/tiny"), artifact("base-models/tiny")
        issued = {"certificate": "c1", "org": ORG, "model": "bot", "version": "v1.0", "policy": "p", "evidence": ["9"]}
        return [
            *entries,
            self.sign("certification", "CertificateIssued", "certificates/c1", [adapter], issued),
            self.sign("registry", "BaseModelWithdrawn", base.name, [base], {"key": "tiny", "reason": "licence"}),
        ]
