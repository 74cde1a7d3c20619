"""NPUW's settings, and what is made of the properties read back, with a core that is made up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.backend import check_options
from harness.backends import openvino_npuw as npuw
from harness.errors import UsageError
from harness.target import DeviceKind, EvidenceLevel, Precision

READ = {
    "NPUW_LLM_MAX_PROMPT_LEN": "1024",
    "NPUW_LLM_MIN_RESPONSE_LEN": "128",
    "NPUW_F16IC": "True",
}


class Core:
    """OpenVINO's core on a machine with these properties; each device refuses those that it does not have."""

    def __init__(self, hint: str = "f32", **npu: Any) -> None:
        self._found = {
            ("CPU", "FULL_DEVICE_NAME"): "a processor",
            ("CPU", "INFERENCE_PRECISION_HINT"): SimpleNamespace(to_string=lambda: hint),
            **{("NPU", key): value for key, value in npu.items()},
        }

    def get_property(self, device: str, key: str) -> Any:
        try:
            return self._found[device, key]
        except KeyError:
            raise RuntimeError(f"{device} has no {key}") from None


DRIVER: dict[str, Any] = {"NPU_DRIVER_VERSION": 2408, "NPU_COMPILER_VERSION": 458757, "DEVICE_ARCHITECTURE": "4000"}


# What is compiled with.


def test_an_npu_is_named_alone_so_that_nothing_is_behind_it() -> None:
    found = npuw.config("npu", {})
    assert found["NPUW_DEVICES"] == "NPU"
    assert (found["NPU_USE_NPUW"], found["NPUW_LLM"]) == ("YES", "YES")
    assert "CPU" not in " ".join(found.values())


def test_an_npu_is_left_at_the_defaults_of_the_runtime_otherwise() -> None:
    assert set(npuw.config("npu", {})) == {"NPU_USE_NPUW", "NPUW_LLM", "NPUW_DEVICES"}


def test_the_rehearsal_goes_the_way_of_the_npu_with_the_processor_alone() -> None:
    found = npuw.config("npuw-cpu", {})
    assert found["NPUW_DEVICES"] == "CPU"
    assert npuw.config("npu", {}).items() - found.items() == {("NPUW_DEVICES", "NPU")}
    assert "NPU" not in found["NPUW_DEVICES"]


@pytest.mark.parametrize("device", ["npu", "npuw-cpu"])
def test_options_come_on_top_of_the_defaults(device: str) -> None:
    options = {"NPUW_LLM_MAX_PROMPT_LEN": "64", "NPUW_DEVICES": "NPU,CPU"}
    assert npuw.config(device, options) == {**npuw.config(device, {}), **options}


@pytest.mark.parametrize(
    ("preset", "setting"),
    [("whole-prompt", ("NPUW_LLM_SHARED_HEAD", "NO")), ("fp32", ("INFERENCE_PRECISION_HINT", "f32"))],
)
def test_a_preset_is_expanded_and_never_reaches_the_runtime_by_its_own_name(
    preset: str, setting: tuple[str, str]
) -> None:
    found = npuw.config("npu", {preset: "yes", "NPUW_LLM_MAX_PROMPT_LEN": "64"})
    assert setting in found.items()
    assert found["NPUW_LLM_MAX_PROMPT_LEN"] == "64"
    assert preset not in found
    assert "yes" not in found.values()


@pytest.mark.parametrize(
    "options", [{"whole-prompt": "no"}, {"NPUW_LLM_MAX_PROMPT_LEN": "0"}, {"NPUW_DEVICES": "AUTO"}, {"NPUW_DQ": "NO"}]
)
def test_options_that_the_runtime_would_not_understand_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        check_options("openvino", options, npuw.LOAD_OPTIONS)


def test_only_the_npu_and_its_rehearsal_are_driven_through_npuw() -> None:
    assert [device for device in ("cpu", "gpu", "npu", "npuw-cpu") if npuw.is_npuw(device)] == ["npu", "npuw-cpu"]


# What a compiled model can take.


def test_the_lengths_read_back_are_what_the_session_takes() -> None:
    able = npuw.capabilities(READ, {"NPUW_LLM_MAX_PROMPT_LEN": "1000"})
    assert (able.max_prompt, able.max_tokens, able.whole_prompt_logits) == (1024, 1152, False)
    assert able.refuses(1024, 128) == ""
    assert "1025 tokens" in able.refuses(1025, 1)
    assert "1153 tokens" in able.refuses(1024, 129)
    assert "NPUW_LLM_MAX_PROMPT_LEN" in able.longer


def test_whole_prompt_logits_are_there_only_when_asked_for() -> None:
    assert npuw.capabilities(READ, {"whole-prompt": "yes"}).whole_prompt_logits


@pytest.mark.parametrize("missing", ["NPUW_LLM_MAX_PROMPT_LEN", "NPUW_LLM_MIN_RESPONSE_LEN"])
def test_a_length_that_cannot_be_read_limits_nothing(missing: str) -> None:
    able = npuw.capabilities({**READ, missing: "?"}, {})
    assert (able.max_prompt, able.max_tokens) == (None, None)


# Where it ran.


@pytest.mark.parametrize(
    ("devices", "kinds", "level"),
    [
        ("NPU", (DeviceKind.NPU,), EvidenceLevel.BY_CONSTRUCTION),
        ("NPU.3720", (DeviceKind.NPU,), EvidenceLevel.BY_CONSTRUCTION),
        ("CPU", (DeviceKind.CPU,), EvidenceLevel.BY_CONSTRUCTION),
        ("NPU,CPU", (DeviceKind.CPU, DeviceKind.NPU), EvidenceLevel.NONE),
        ("NPU, CPU", (DeviceKind.CPU, DeviceKind.NPU), EvidenceLevel.NONE),
        ("", (), EvidenceLevel.NONE),
    ],
)
def test_the_devices_of_npuw_are_believed_and_not_those_that_the_plugin_names(
    devices: str, kinds: tuple[DeviceKind, ...], level: EvidenceLevel
) -> None:
    found = npuw.evidence({"EXECUTION_DEVICES": "NPU", "NPUW_DEVICES": devices})
    assert (found.kinds, found.level) == (kinds, level)
    assert ",".join(found.devices) == devices.replace(" ", "")
    assert found.source


# What it computes in.


@pytest.mark.parametrize(
    ("hint", "handed_over_in_f16", "expected"),
    [
        ("f32", "True", Precision.FP16),
        ("f32", "False", Precision.FP32),
        ("bf16", "True", Precision.BF16),
        ("bf16", "False", Precision.BF16),
        ("f16", "True", Precision.FP16),
        ("dynamic", "True", None),
    ],
)
def test_the_rehearsal_computes_in_the_coarser_of_the_processors_default_and_what_is_handed_over(
    hint: str, handed_over_in_f16: str, expected: Precision | None
) -> None:
    found = npuw.arithmetic(Core(hint), "npuw-cpu", {"NPUW_F16IC": handed_over_in_f16}, {})
    assert found is expected


def test_the_preset_fp32_computes_in_fp32_on_the_processor() -> None:
    assert npuw.arithmetic(Core("bf16"), "npuw-cpu", READ, {"fp32": "yes"}) is Precision.FP32


@pytest.mark.parametrize("options", [{}, {"fp32": "yes"}])
def test_nothing_is_claimed_of_the_arithmetic_of_an_npu(options: dict[str, str]) -> None:
    assert npuw.arithmetic(Core(**DRIVER), "npu", READ, options) is None


# Where compiled models are kept.


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PHI3_CONFORMANCE_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("device", ["npu", "npuw-cpu"])
def test_compiled_models_are_kept_below_the_cache_folder_of_the_project(cache: Path, device: str) -> None:
    found = npuw.compile_cache(Core(**DRIVER), "2026.4.1", device)
    assert found is not None
    assert cache in found.parents
    assert found == npuw.compile_cache(Core(**DRIVER), "2026.4.1", device), "a second run finds what the first kept"


@pytest.mark.usefixtures("cache")
def test_another_driver_compiler_device_or_openvino_never_finds_what_one_has_compiled() -> None:
    folders = [
        npuw.compile_cache(Core(**DRIVER), "2026.4.1", "npu"),
        npuw.compile_cache(Core(**DRIVER), "2026.5.0", "npu"),
        npuw.compile_cache(Core(**{**DRIVER, "NPU_DRIVER_VERSION": 2409}), "2026.4.1", "npu"),
        npuw.compile_cache(Core(**{**DRIVER, "NPU_COMPILER_VERSION": 458758}), "2026.4.1", "npu"),
        npuw.compile_cache(Core(**{**DRIVER, "DEVICE_ARCHITECTURE": "3720"}), "2026.4.1", "npu"),
        npuw.compile_cache(Core(**DRIVER), "2026.4.1", "npuw-cpu"),
    ]
    assert None not in folders
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("unreadable", sorted(DRIVER))
def test_nothing_is_kept_where_it_cannot_be_told_what_compiled_it(unreadable: str) -> None:
    known = {key: value for key, value in DRIVER.items() if key != unreadable}
    assert npuw.compile_cache(Core(**known), "2026.4.1", "npu") is None
