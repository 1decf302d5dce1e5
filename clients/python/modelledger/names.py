"""Names as people write them -> resource names of the API."""

from __future__ import annotations

from ledger.resource_names import ModelName, parse_model, parse_served


def model_name(text: str) -> ModelName:
    """`org/model`, or its resource name. Raises InvalidName."""
    return parse_model(text, "model") if text.startswith("orgs/") else parse_served(text, "model")


def version_resource(model: str, version: str) -> str:
    return f"{model_name(model).resource}/versions/{version}"
