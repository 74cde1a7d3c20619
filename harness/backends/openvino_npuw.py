"""OpenVINO's way of running language models on an NPU: NPUW, the wrapper inside its NPU plugin.

NPUW cuts the model into parts of static shape, one set for the prompt and one for the answer, and compiles
each for the devices of `NPUW_DEVICES`. That may be the CPU, so the whole path can be run where there is no
NPU: the harness does so under the device name `npuw-cpu`, which is of kind cpu and no stand-in for an NPU.

Measured with OpenVINO 2026.4.1: the logits are those of the last token only; `EXECUTION_DEVICES` says NPU
whatever computed; a batch above one ends the process; lower position ids after higher ones give wrong logits
without an error, so a prompt is always begun anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.arithmetic import Arithmetic, CachePrecision, Weights, caches_up_to
from harness.backend import Capabilities
from harness.cache import cache_root, mark_used
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision

REHEARSAL = "npuw-cpu"
"""The device name under which NPUW runs with its parts on the CPU."""

# What the runtime takes when a user asks for nothing. NPUW_DEVICES is left at its default on an NPU, which is
# the NPU with the CPU behind it: only naming the NPU alone rules out a fallback, and that changes no number.
_BASE = {"NPU_USE_NPUW": "YES", "NPUW_LLM": "YES"}
_DEVICES = {"npu": "NPU", REHEARSAL: "CPU"}
# OpenVINO 2026.4.1's partitioner refuses the bundled checkpoint ("BitwiseAnd ... Argument shapes are inconsistent"),
# so the rehearsal does without it. On an NPU the runtime's default stands, and an error is the result.
_REHEARSAL_ONLY = {"NPUW_ONLINE_PIPELINE": "NONE"}

# Diagnostic settings under a name of ours.
_PRESETS = {
    "whole-prompt": {"NPUW_LLM_SHARED_HEAD": "NO", "NPUW_SLICE_OUT": "NO", "NPUW_LLM_PREFILL_HINT": "STATIC"},
    "fp32": {
        "INFERENCE_PRECISION_HINT": "f32",
        "NPUW_F16IC": "NO",
        "NPUW_DQ": "NO",
        "NPUW_DCOFF_TYPE": "",
        "NPUW_DCOFF_SCALE": "NO",
    },
}
_NUMBER = re.compile("[1-9][0-9]*")
LOAD_OPTIONS: Mapping[str, Sequence[str] | re.Pattern[str]] = {
    **dict.fromkeys(_PRESETS, ("yes",)),
    "NPUW_LLM_MAX_PROMPT_LEN": _NUMBER,
    "NPUW_LLM_MIN_RESPONSE_LEN": _NUMBER,
    "NPUW_LLM_PREFILL_HINT": ("DYNAMIC", "STATIC"),
    "NPUW_LLM_GENERATE_HINT": ("FAST_COMPILE", "BEST_PERF"),
    "NPUW_ONLINE_PIPELINE": ("NONE", "REP", "REG", "COMPUTE"),
    "NPUW_DEVICES": ("NPU", "CPU", "NPU,CPU"),
}
READ_BACK = (
    "NPUW_DEVICES",
    "NPUW_LLM_MAX_PROMPT_LEN",
    "NPUW_LLM_MIN_RESPONSE_LEN",
    "NPUW_LLM_MAX_GENERATION_TOKEN_LEN",
    "NPUW_LLM_PREFILL_HINT",
    "NPUW_LLM_GENERATE_HINT",
    "NPUW_ONLINE_PIPELINE",
    "NPUW_F16IC",
    "NPUW_DQ",
    "NPUW_SLICE_OUT",
    "NPUW_LLM_SHARED_HEAD",
    "LOADED_FROM_CACHE",
)


def is_npuw(base_device: str) -> bool:
    """Whether a device is driven through NPUW."""
    return base_device in _DEVICES


def config(base_device: str, options: Mapping[str, str]) -> dict[str, str]:
    """The properties to compile with: the runtime's defaults for a device of `is_npuw`, then the options."""
    found = {**_BASE, "NPUW_DEVICES": _DEVICES[base_device]}
    found |= _REHEARSAL_ONLY if base_device == REHEARSAL else {}
    for name, value in options.items():
        found |= _PRESETS.get(name, {name: value})
    return found


def alone(base_device: str) -> dict[str, str]:
    """The properties to compile a graph of one operator with, which is no language model: on an NPU the plugin's own.

    In the rehearsal NPUW takes it, with the part on the CPU.
    """
    if base_device != REHEARSAL:
        return {"CACHE_DIR": ""}
    found = {name: value for name, value in config(base_device, {}).items() if name != "NPUW_LLM"}
    return {**found, "CACHE_DIR": ""}


def capabilities(properties: Mapping[str, str], options: Mapping[str, str]) -> Capabilities:
    """What a compiled model can take, from the lengths read back; they are fixed when it is compiled."""
    prompt = properties.get("NPUW_LLM_MAX_PROMPT_LEN", "")
    answer = properties.get("NPUW_LLM_MIN_RESPONSE_LEN", "")
    known = prompt.isdigit() and answer.isdigit()
    return Capabilities(
        whole_prompt_logits="whole-prompt" in options,
        max_prompt=int(prompt) if known else None,
        max_tokens=int(prompt) + int(answer) if known else None,
        max_append=int(properties.get("NPUW_LLM_MAX_GENERATION_TOKEN_LEN", "") or 1),
        longer="compile for more: --load-option='openvino:*:*=NPUW_LLM_MAX_PROMPT_LEN=TOKENS'",
        recomputes_past=0,  # generation is optimum-intel's, as on the CPU
    )


def evidence(properties: Mapping[str, str]) -> Evidence:
    """`NPUW_DEVICES`, since `EXECUTION_DEVICES` names the NPU even where the CPU computed."""
    devices = tuple(filter(None, properties.get("NPUW_DEVICES", "").replace(" ", ",").split(",")))
    kinds = {"NPU": DeviceKind.NPU, "CPU": DeviceKind.CPU, "GPU": DeviceKind.GPU}
    named = tuple(sorted({kinds[device.split(".")[0]] for device in devices if device.split(".")[0] in kinds}))
    level = EvidenceLevel.BY_CONSTRUCTION if len(devices) == 1 else EvidenceLevel.NONE
    return Evidence(level, named, devices, "NPUW_DEVICES of the compiled model" if devices else "nothing read back")


def arithmetic(core: Any, base_device: str, properties: Mapping[str, str], options: Mapping[str, str]) -> Any:
    """What the parts compute in, as far as it can be read: NPUW itself reports none.

    On the CPU: the coarser of the CPU plugin's default and of FP16, in which NPUW hands tensors from part to
    part (`NPUW_F16IC`). On an NPU None: there is nothing to read.
    """
    if base_device != REHEARSAL:
        return None
    if "fp32" in options:
        return Precision.FP32
    hint = options.get("INFERENCE_PRECISION_HINT", "f16")
    if hint == "f16":  # the CPU plugin takes this hint on any processor and heeds it on few
        hint = core.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    if hint == "f32" and properties.get("NPUW_F16IC") == "True":
        return Precision.FP16
    return {"f32": Precision.FP32, "f16": Precision.FP16, "bf16": Precision.BF16}.get(hint)


def permitted(computes: Precision | None) -> tuple[Arithmetic, ...]:
    """What an NPUW session may do: half precision at the parts' borders or throughout, an FP16 cache or a finer one."""
    operators = computes or Precision.FP16
    roundings = (Weights.EXACT,) if operators is Precision.FP32 else tuple(Weights)
    return tuple(
        Arithmetic(operators, 0, cache, weights)
        for cache, weights in itertools.product(caches_up_to(CachePrecision.F16), roundings)
    )


def compile_cache(core: Any, version: str, base_device: str) -> Path | None:
    """The folder for compiled models: one for each OpenVINO, driver and compiler; None where these are unknown.

    A blob that another driver compiled may load and compute something else (openvino.genai issue 2082).
    """
    if base_device == REHEARSAL:
        hint = core.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
        parts = [version, "cpu", str(core.get_property("CPU", "FULL_DEVICE_NAME")), hint]
    else:
        parts = [version]
        for key in ("NPU_DRIVER_VERSION", "NPU_COMPILER_VERSION", "DEVICE_ARCHITECTURE"):
            value = None
            with contextlib.suppress(Exception):  # each driver refuses in its own way
                value = core.get_property("NPU", key)
            if value is None:
                return None
            parts.append(str(value))
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    folder = cache_root() / "compiled" / f"openvino-{base_device}-{name}"
    mark_used(folder)
    return folder
