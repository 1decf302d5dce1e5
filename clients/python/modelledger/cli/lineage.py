"""`modelledger lineage`: the graph of materials and subjects, as a tree."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from ledger.errors import NotFound
from modelledger.cli.session import Session, console, json_option, pass_session, plain, print_json, short
from modelledger.client import Client
from modelledger.ledger.v1 import registry_pb2
from modelledger.names import version_resource

if TYPE_CHECKING:
    from rich.tree import Tree

_SHA256 = re.compile(r"[0-9a-f]{64}")


@click.command()
@click.argument("name", metavar="ORG/MODEL|base/KEY|DIGEST")
@click.argument("version", default="latest")
@click.option("--descendants", is_flag=True, help="Also what was made from it.")
@json_option
@pass_session
def lineage(session: Session, name: str, version: str, descendants: bool, as_json: bool) -> None:
    """What an artifact is made from, and what was made from it.

    DIGEST is the hex SHA-256 of any artifact: a base folder, a dataset, an adapter, a GGUF file.
    """
    asked, starts = _asked(session.client, name, version)
    graph = session.client.lineage(asked, descendants=descendants)
    if as_json:
        return print_json(plain(graph))
    made_from, made_into = defaultdict(list), defaultdict(list)
    for edge in graph.edges:
        made_from[edge.subject].append(edge.material)
        made_into[edge.material].append(edge.subject)
    nodes = {node.sha256: node for node in graph.nodes}
    for start in starts:
        if made_from[start] or not made_into[start]:
            console().print(_tree(nodes, start, made_from, "made from"))
        if made_into[start]:
            console().print(_tree(nodes, start, made_into, "made into"))
    return None


def _asked(client: Client, name: str, version: str) -> tuple[str, Sequence[str]]:
    """What to ask the registry for, and the digests at the root of the answer."""
    if _SHA256.fullmatch(name):
        return name, [name]
    if name.startswith("base/"):
        for model in client.base_models():
            if model.record.key == name.removeprefix("base/"):
                return model.sha256, [model.sha256]
        raise NotFound(f"{name} is not registered; `modelledger base list` shows what there is")
    found = client.version(name, version)
    return version_resource(name, found.version), [adapter.chain[-1].sha256 for adapter in found.record.adapters]


def _tree(
    nodes: Mapping[str, registry_pb2.LineageNode], start: str, edges: Mapping[str, Sequence[str]], direction: str
) -> Tree:
    """An artifact that is reached twice is taken apart once."""
    from rich.text import Text
    from rich.tree import Tree

    def label(sha256: str, note: str) -> Text:
        node = nodes[sha256]
        text = Text(f"{node.name}  ", "red" if node.revoked else "")
        revoked = ", REVOKED" if node.revoked else ""
        text.append(f"{short(sha256)}, event {node.event_index} {node.kind} by {node.actor}{revoked}{note}", "dim")
        return text

    root = Tree(label(start, f"  {direction}:" if edges.get(start) else ""))
    seen = {start}
    waiting = [(root, start)]
    while waiting:
        branch, sha256 = waiting.pop()
        for other in edges.get(sha256, ()):
            again = other in seen and bool(edges.get(other))
            child = branch.add(label(other, ", see above" if again else ""))
            if not again:
                seen.add(other)
                waiting.append((child, other))
    return root
