"""What the Intel NPU library holds once it has loaded a model: kept in a folder by the worker, read by the controller.

The library quantises when it loads, so there is no artifact to read. A worker writes each tensor of the loaded model
into a safetensors file of its own, as the library holds it, and a manifest last.

A QuantizedLinear holds codes, int8 `[n, K]` or two to a byte `[n, K / 2]` (the first in the low half, both signed), and
a scale `[n, 1]` in FP16, which the library has multiplied by sqrt(K) to use more of FP16's range. Its kernel multiplies
the activations by sqrt(1 / K), an FP16 constant, so the weight is code x scale x FP16(sqrt(1 / K)): where K is no power
of four the constant's own rounding is part of the weight.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.codes import signed, unpack
from harness.errors import ArtifactError, CheckpointError
from harness.layout import Layout, Place
from harness.tensor_files import TensorFiles
from harness.weights import Part, Plain, Quantised, Statement, Stored

MANIFEST = "npu-library-weights.json"
_FORMAT = 1
_REMEDY = "keep the loaded model's weights with NpuLibrarySession.keep_weights and give that folder"


def keep(model: Any, folder: Path, exporter: str) -> None:
    """In a worker: write what a loaded model holds into a folder, which is made if need be.

    `exporter` says who quantised, with versions. Raises ArtifactError for a layer with a bias, which Phi-3 has not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    bits: dict[str, int] = {}
    for module_name, module in model.named_modules():
        if type(module).__name__ == "QuantizedLinear":
            if module.bias is not None:
                raise ArtifactError(f"{module_name} has a bias, which Phi-3 has not", "give a checkpoint of Phi-3")
            name = f"{module_name}.weight"
            bits[name] = 8 if module.weight.dtype.is_signed else 4
            _save(folder, name, codes=module.weight, scale=module.scale)
    plain = [(name, value) for name, value in model.named_parameters(remove_duplicate=False) if name not in bits]
    for name, value in plain:
        _save(folder, name, values=value.detach())
    tensors = {name: {"bits": bits.get(name)} for name in [*bits, *(name for name, _ in plain)]}
    manifest = {"format": _FORMAT, "exporter": exporter, "tensors": tensors}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _save(folder: Path, name: str, **tensors: Any) -> None:
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in tensors.items()}, str(folder / f"{name}.safetensors"))


class KeptWeights:
    """The weights that a worker kept; see `harness.weights.ArtifactWeights`. Opening reads manifest and headers."""

    def __init__(self, artifact: Path, config: Mapping[str, Any]) -> None:
        self._exporter, self._bits = _read_manifest(artifact / MANIFEST)
        self._files = {name: _open(artifact / f"{name}.safetensors") for name in self._bits}
        self._shapes = Layout.of(config).shapes()
        unknown = sorted(set(self._bits) - set(self._shapes))
        if unknown:
            raise ArtifactError(f"{artifact} holds {unknown[0]}, which is no tensor of Phi-3", _REMEDY)
        Layout.of(config).check_complete(Place(name, 0, self._shapes[name]) for name in self._bits)

    @property
    def scheme(self) -> Mapping[str, str]:
        """Who quantised, and the bits of a code where there are codes: one scale for each row, symmetric."""
        bits = sorted({str(bits) for bits in self._bits.values() if bits is not None})
        return {"exporter": self._exporter, **({"bits": ", ".join(bits), "group": "channel"} if bits else {})}

    def tensors(self) -> Iterator[Stored]:
        """Every tensor, one at a time. Scales are float64: the stored FP16 ones by the kernel's constant, exactly.

        Raises ArtifactError for one whose files do not hold what the manifest says.
        """
        return (part.read() for part in self.parts())

    def parts(self) -> list[Part]:
        """See `harness.weights.InParts`."""
        return [Part(name, 0, self._shapes[name][0], partial(self._read, name)) for name in self._bits]

    def _read(self, name: str) -> Stored:
        bits = self._bits[name]
        content = self._plain(name) if bits is None else self._quantised(name, bits)
        shape = content.codes.shape if isinstance(content, Quantised) else content.values.shape
        if shape != self._shapes[name]:
            raise ArtifactError(f"{name} is {list(shape)} where Phi-3 has {list(self._shapes[name])}", _REMEDY)
        return Stored(name, 0, name, content)

    def statements(self) -> list[Statement]:
        """None: everything but the weights is the checkpoint's own, as transformers reads it."""
        return []

    def _plain(self, name: str) -> Plain:
        values = self._values(name, "values", ("float64", "float32", "float16", "bfloat16"))
        return Plain(values, self._files[name].dtype("values"))

    def _quantised(self, name: str, bits: int) -> Quantised:
        stored = self._values(name, "codes", ("uint8",) if bits == 4 else ("int8",))
        codes = signed(unpack(stored, 4), 4) if bits == 4 else stored
        scale = self._values(name, "scale", ("float16",))
        if codes.ndim != 2 or scale.shape != (codes.shape[0], 1):
            raise ArtifactError(f"{name} has codes {list(codes.shape)} and scales {list(scale.shape)}", _REMEDY)
        constant = np.float64(np.float16(np.sqrt(1.0 / codes.shape[1])))
        zero = np.zeros((1, 1), dtype=np.int8)
        half = 2 ** (bits - 1)
        return Quantised(codes, scale.astype(np.float64) * constant, zero, bits, -half, half - 1)

    def _values(self, name: str, key: str, dtypes: tuple[str, ...]) -> NDArray[Any]:
        try:
            if self._files[name].dtype(key) not in dtypes:
                raise ArtifactError(f"{name}: {key} is {self._files[name].dtype(key)}, not {dtypes[0]}", _REMEDY)
            return self._files[name].values(key)
        except CheckpointError as error:
            raise ArtifactError(f"{name}: {error.problem}", _REMEDY) from None


def _read_manifest(path: Path) -> tuple[str, dict[str, int | None]]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            raise ArtifactError(f"{path} is of format {manifest['format']}, not {_FORMAT}", _REMEDY)
        bits = {str(name): entry["bits"] for name, entry in manifest["tensors"].items()}
        exporter = str(manifest["exporter"])
    except FileNotFoundError:
        raise ArtifactError(f"{path.parent} holds no kept weights: it has no {path.name}", _REMEDY) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error!r}", _REMEDY) from None
    for name, value in bits.items():
        # A name is a file's too, and must not lead out of the folder.
        if value not in (None, 4, 8) or PureWindowsPath(name).name != name:
            raise ArtifactError(f"{path}: {name!r} has {value!r} bits", _REMEDY)
    return exporter, bits


def _open(path: Path) -> TensorFiles:
    try:
        return TensorFiles([path], integers=True)
    except CheckpointError as error:
        raise ArtifactError(error.problem, _REMEDY) from None
