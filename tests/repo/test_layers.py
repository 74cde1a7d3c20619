"""The layers of the harness: a module imports only from lower ones, and the plugin loads no runtime."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from harness.golden import TREE

LAYERS = (
    (
        *("errors", "windows_job", "last_words", "connection", "cache", "busy_counter", "dxgi", "codes", "findings"),
        *("untrusted", "not_finite", "progress", "drawn"),
        *("audit_search", "power", "publication"),
    ),
    (
        "target",
        "metrics",
        "orphans",
        "resources",
        "journal",
        "privacy",
        "words",
        "soak_marks",
        "kept",
        "cache_contents",
    ),
    ("reference_rows", "compact_plan"),
    ("compact", "compacting"),
    ("arithmetic", "environment", "longrope"),
    ("prompts", "backend", "policy", "waivers", "wire", "checkpoint", "watch", "exporter_main", "weights", "layout"),
    ("contents",),
    ("coverage", "wanted"),
    ("audit_grid", "states", "products", "localise"),
    ("overflow",),
    ("busy_linux", "busy_nvidia", "busy_windows", "attest", "accelerators", "device_lock", "depot", "tensor_files"),
    ("busy", "compare", "devices", "artifacts", "ready_made", "audit_moved", "audit_explain"),
    (
        "witness",
        "outpost",
        "audit_tensor",
        "yardstick",
        "suspects",
        "stopwatch",
        "consistency",
        "growth",
    ),
    ("vocabulary",),
    ("phi3_float64", "intervals", "spread", "golden_manifest"),
    ("steps", "contention", "endurance", "tokenization", "operators"),
    ("backends", "reference"),
    ("streaming",),
    ("reference_operations",),
    ("worker",),
    ("golden", "discovery", "lab", "statements", "decompose"),
    ("record", "crew", "options", "audit", "rendering", "oracle_check", "golden_compact"),
    ("golden_writing", "streamed_recording", "part_recorder"),
    ("worker_main",),
    ("golden_parts",),
    ("recording", "reference_memory", "record_schema", "diff", "waiver_check", "coverage_check"),
    ("run", "report", "golden_hosts"),
    ("preparation", "loading", "details", "exact_weights"),
    ("probes", "session_worker"),
    ("sessions", "machines"),
    ("tracing", "lineup", "speed", "stepping"),
    ("caching", "texts", "limits", "causality", "numbers", "soak"),
    ("shapes", "batches", "determinism"),
    ("walk",),
    ("entries", "ledger", "verdicts"),
    ("judge", "state"),
    ("family",),
    ("fixtures", "marks", "parametrising", "interruptions", "alone", "idle_threads"),
    ("outcomes", "signoff"),
    ("cli_options",),
    (
        "cli_cache",
        "cli_diff",
        "cli_golden",
        "cli_operator",
        "cli_record",
        "cli_report",
        "cli_waivers",
        "cli_signoff",
        "cli_coverage",
    ),
    ("plugin", "cli"),
)
RUNTIMES = ("torch", "openvino", "onnxruntime", "onnxruntime_genai", "transformers", "optimum", "nncf")


def layer_of(module: str) -> int:
    name = module.split(".")[1]
    return next(number for number, names in enumerate(LAYERS) if name in names)


def modules() -> list[Path]:
    return sorted(path for path in (TREE / "harness").rglob("*.py") if path.stem != "__init__")


def imported(path: Path) -> set[str]:
    """The harness modules that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "harness":
            found |= {f"harness.{alias.name}" for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("harness."):
            found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("harness.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(TREE / "harness")))
def test_a_module_imports_only_from_lower_layers(path: Path) -> None:
    own = layer_of(".".join(path.relative_to(TREE).with_suffix("").parts))
    package = f"harness.{path.parent.name}."
    for module in imported(path):
        lower = layer_of(module) < own or f"{module}.".startswith(package)
        assert lower, f"{path.name} imports {module}, which is not below it"


def test_the_plugin_and_the_command_line_load_no_runtime() -> None:
    code = (
        "import sys, harness.plugin, harness.cli; from harness.backend import load_backends; load_backends(); "
        f"print(sorted(set({RUNTIMES!r}) & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    names = {path.stem for path in (TREE / "harness").rglob("*.py")}
    assert not names & {"utils", "util", "common", "helpers", "constants", "config", "misc"}


def test_no_module_has_grown_past_one_concept() -> None:
    long = {p.name: n for p in modules() if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long
