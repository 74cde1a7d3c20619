"""The environment variables that change what runtimes compute: these are recorded, and no others."""

from __future__ import annotations

import re
from collections.abc import Mapping

from harness.privacy import Privacy, is_secret
from harness.untrusted import printable

MASKED = "(masked)"
# Threads and the order of sums; oneDNN, OpenVINO, ONNX Runtime; Level Zero, NPU and GPU drivers; PyTorch and CUDA.
_ALLOWED = re.compile(
    r"(?:OMP|KMP|GOMP|MKL|OPENBLAS|BLIS|VECLIB|NUMEXPR)_[A-Z0-9_]+"
    r"|(?:ONEDNN|DNNL|OV|OPENVINO|ORT|ORTGENAI|ONNXRUNTIME|GENAI)_[A-Za-z0-9_]+"
    r"|(?:NPU|NPUW|IE_NPU|ZE|ZES|ZET|SYCL|UR|ONEAPI|NEO|IGC|DML|DIRECTML|D3D12)_[A-Za-z0-9_]+"
    r"|(?:IPEX|PYTORCH|TORCH|ATEN|CUBLAS|CUDNN|CUDA|HIP|ROCR|HSA|MIOPEN)_[A-Z0-9_]+"
    r"|NVIDIA_TF32_OVERRIDE|LD_PRELOAD|MALLOC_ARENA_MAX"
)
_LONGEST = 200
_PATH = re.compile(r"[/\\~]|^[A-Za-z]:")


def recorded(environment: Mapping[str, str], privacy: Privacy) -> dict[str, str]:
    """The allowed variables by name, in order; one that holds a path, a name or a secret is masked."""
    return {
        name: _shown(name, value, privacy) for name, value in sorted(environment.items()) if _ALLOWED.fullmatch(name)
    }


def _shown(name: str, value: str, privacy: Privacy) -> str:
    private = privacy.hide(value) != value or printable(value) != value
    return MASKED if private or is_secret(name) or _PATH.search(value) or len(value) > _LONGEST else value
