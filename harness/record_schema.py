"""The JSON Schema of the run record, for those who read it with something else than this project."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from harness.record import SCHEMA, RunRecord

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def record_schema() -> dict[str, Any]:
    """The schema of the record that this version writes. A number that JSON has not (NaN, Inf) is null there."""
    made = _amended(msgspec.json.schema(RunRecord))
    made["$defs"]["RunRecord"]["properties"]["schema"] = {"const": SCHEMA}
    return {"$schema": _DRAFT, "title": f"phi3-conformance run record, schema {SCHEMA}", **made}


def schema_text() -> str:
    """The schema as it is published."""
    return msgspec.json.format(msgspec.json.encode(record_schema()), indent=1).decode("utf-8") + "\n"


def _amended(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_amended(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: value if key == "default" else _amended(value) for key, value in schema.items()}
    if found.get("type") == "number":
        found["type"] = ["number", "null"]
    if isinstance(found.get("description"), str):
        found["description"] = inspect.cleandoc(found["description"])
    return found
