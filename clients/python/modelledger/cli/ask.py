"""`modelledger ask`: a question, an answer, and which bytes answered."""

from __future__ import annotations

from collections.abc import Iterator

import click

from modelledger.cli.session import Session, json_option, pass_session, plain, print_json, short
from modelledger.inference.v1 import inference_pb2


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[MODEL] QUESTION")
@click.option("--stream/--no-stream", default=True, show_default=True, help="Show the answer while it is made.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy.  [default: 0.7]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="[default: a random one]")
@click.option("--system", default="", help="What the model is told first.")
@json_option
@pass_session
def ask(
    session: Session,
    words: tuple[str, ...],
    stream: bool,
    max_tokens: int,
    temperature: float | None,
    seed: int | None,
    system: str,
    as_json: bool,
) -> None:
    """Ask a served model a question.

    Without MODEL the default answers. The answer goes to stdout, where it comes from to stderr.
    """
    if len(words) > 2:
        raise click.UsageError("give a model and a question; put the question in quotes")
    model = words[0] if len(words) == 2 else ""
    messages = [inference_pb2.ChatMessage(role="user", content=words[-1])]
    if system:
        messages.insert(0, inference_pb2.ChatMessage(role="system", content=system))
    sampling = inference_pb2.Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    if as_json:
        return print_json(plain(session.client.ask(messages, model=model, sampling=sampling)))
    if stream:
        source = _print_pieces(session.client.ask_stream(messages, model=model, sampling=sampling))
    else:
        response = session.client.ask(messages, model=model, sampling=sampling)
        click.echo(response.text)
        source = response.provenance
    version = f" {source.version}" if source.version else ""
    click.echo(f"— {source.model}{version}, sha256 {short(source.sha256)}, event {source.event_index}", err=True)
    return None


def _print_pieces(pieces: Iterator[inference_pb2.StreamGenerateResponse]) -> inference_pb2.Provenance:
    source = inference_pb2.Provenance()
    for piece in pieces:
        if piece.HasField("provenance"):
            source = piece.provenance
        click.echo(piece.text, nl=False)
    click.echo()
    return source
