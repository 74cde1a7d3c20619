"""How OpenVINO's artifacts are exported: the recipes, which are options of optimum-cli under a name."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from harness.backend import Recipe
from harness.target import Precision

_EXPORTER = ("optimum-intel", "optimum", "openvino", "nncf", "transformers", "torch")
_GROUP_128 = ("--weight-format", "int4", "--sym", "--group-size", "128")

# The first recipe of a precision is its default. ratio 0.6 keeps the most sensitive 40 % of the layers in
# INT8; the NPU wants one precision throughout, so its default is ratio 1.0.
RECIPES = (
    Recipe("fp32", Precision.FP32, ("--weight-format", "fp32"), _EXPORTER),
    Recipe("fp16", Precision.FP16, ("--weight-format", "fp16"), _EXPORTER),
    Recipe("int8", Precision.INT8, ("--weight-format", "int8"), _EXPORTER),
    Recipe("int4-sym-g128-r0.6", Precision.INT4, (*_GROUP_128, "--ratio", "0.6"), _EXPORTER),
    Recipe("int4-sym-g128-r1.0", Precision.INT4, (*_GROUP_128, "--ratio", "1.0"), _EXPORTER),
    Recipe(
        "int4-sym-channel-r1.0",
        Precision.INT4,
        ("--weight-format", "int4", "--sym", "--group-size", "-1", "--ratio", "1.0"),
        _EXPORTER,
    ),
    Recipe(
        "int4-asym-g128-r1.0",
        Precision.INT4,
        ("--weight-format", "int4", "--group-size", "128", "--ratio", "1.0"),
        _EXPORTER,
    ),
    Recipe(
        "int4-sym-g32-r1.0",
        Precision.INT4,
        ("--weight-format", "int4", "--sym", "--group-size", "32", "--ratio", "1.0"),
        _EXPORTER,
    ),
    Recipe("int4-sym-g128-r1.0-awq", Precision.INT4, (*_GROUP_128, "--ratio", "1.0", "--awq"), _EXPORTER),
    Recipe(
        "int4-sym-g128-r1.0-awq-se",
        Precision.INT4,
        (*_GROUP_128, "--ratio", "1.0", "--awq", "--scale-estimation", "--dataset", "auto", "--num-samples", "32"),
        _EXPORTER,
    ),
)
NPU_DEFAULTS = {Precision.INT4: "int4-sym-g128-r1.0"}


def smaller_groups(checkpoint: Path, recipe: Recipe) -> list[str]:
    """What has NNCF take smaller groups where a recipe's does not divide a product's width; it refuses otherwise."""
    group = dict(itertools.pairwise(recipe.options)).get("--group-size", "-1")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    widths = (config["hidden_size"], config["intermediate_size"])
    fits = int(group) < 1 or not any(width % int(group) for width in widths)
    return [] if fits else ["--group-size-fallback", "adjust"]
