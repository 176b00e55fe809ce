"""The JSON Schema of the configuration file: what an editor checks and completes it by."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from control.operator.fields import Endpoint
from control.operator.schema import Config


class _AsWritten(GenerateJsonSchema):
    """Defaults as the file would have them: pydantic writes only those of its own types so."""

    def encode_default(self, dft: Any) -> Any:
        return str(dft) if isinstance(dft, Endpoint) else super().encode_default(dft)


def json_schema() -> dict[str, Any]:
    """The schema, each key as the file calls it."""
    return Config.model_json_schema(by_alias=True, schema_generator=_AsWritten)
