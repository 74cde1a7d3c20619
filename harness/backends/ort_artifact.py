"""An artifact of ONNX Runtime GenAI on disk: its configuration, and whether an export is whole.

Both can be told without a runtime that could load it, so a DirectML artifact is checked on any machine.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.untrusted import printable

_AGAIN = "export it again: phi3-conformance prepare"


def read_config(artifact: Path) -> dict[str, Any]:
    """genai_config.json. Raises UsageError when there is none, or it lacks vocabulary or context length."""
    path = artifact / "genai_config.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        int(settings["model"]["vocab_size"]), int(settings["model"]["context_length"])
    except FileNotFoundError:
        raise UsageError(
            f"{artifact} is no ONNX Runtime GenAI artifact: it has no genai_config.json",
            "export it with python -m onnxruntime_genai.models.builder",
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} cannot be used: it is no text in UTF-8", "export the artifact again") from None
    except (ValueError, KeyError, TypeError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else printable(str(error))
        raise UsageError(f"{path} cannot be used: {said}", "export the artifact again") from None
    return settings


def providers(settings: dict[str, Any]) -> list[str]:
    """The execution providers that a configuration asks for, in lower case; none means the CPU."""
    options = settings["model"].get("decoder", {}).get("session_options", {}).get("provider_options") or []
    return [str(name).lower() for entry in options for name in entry]


def check_export(artifact: Path, provider: str, *, quantised: bool) -> None:
    """Check what the builder wrote: configuration, graph, and that no weight lies past the end of its file.

    `provider` is the execution provider that it was exported for. Reads the graph, not the weights. Needs the
    `onnx` package. Raises UsageError naming what is wrong.
    """
    settings = read_config(artifact)
    found = providers(settings)
    if found != ([] if provider == "cpu" else [provider]):
        raise UsageError(f"the artifact for {provider} asks for the providers {found or 'none'}", _AGAIN)
    decoder = settings["model"]["decoder"]
    model = _read_graph(artifact / decoder["filename"])
    operators = Counter(node.op_type for node in model.graph.node)
    layers = int(decoder["num_hidden_layers"])
    if operators["GroupQueryAttention"] != layers:
        raise UsageError(f"the graph has {operators['GroupQueryAttention']} attentions for {layers} layers", _AGAIN)
    # With the builder's use_qdq, products are of floats that a DequantizeLinear makes of codes.
    coded = operators["MatMulNBits"] + operators["DequantizeLinear"]
    products = coded if quantised else operators["MatMul"]
    if products < layers:
        kind = "quantised" if quantised else "float"
        raise UsageError(f"the graph has {products} {kind} products for {layers} layers", _AGAIN)
    _check_weights(artifact, model)


def _read_graph(path: Path) -> Any:
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf raises classes of its own
        raise UsageError(f"{path.name} is no readable ONNX graph: {error}", _AGAIN) from None


def _check_weights(artifact: Path, model: Any) -> None:
    for tensor in model.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if not where:
            continue
        file = artifact / where["location"]
        size = file.stat().st_size if file.is_file() else 0
        end = int(where.get("offset", 0)) + int(where["length"])
        if end > size:
            raise UsageError(f"{tensor.name} ends at byte {end} of {file.name}, which has {size}", _AGAIN)
