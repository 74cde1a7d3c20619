"""Checkpoints: finding one, refusing what is no Phi-3, and hashing what goldens and artifacts depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import msgspec
import platformdirs

from harness.errors import CheckpointError

_HASH_BLOCK = 1 << 22
# A product of a million extents would keep a reader busy for hours.
_MOST_AXES = 16
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
_PATTERNS = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "merges.txt", "*.py"]


class Fingerprint(msgspec.Struct, frozen=True):
    """SHA-256 of what a checkpoint is made of, file names included."""

    weights: str
    tokenizer: str
    config: str

    @property
    def key(self) -> str:
        """One short name for all three, 16 hex digits."""
        return hashlib.sha256(f"{self.weights}{self.tokenizer}{self.config}".encode()).hexdigest()[:16]


class Checkpoint(msgspec.Struct, frozen=True):
    """A Hugging Face Phi-3 folder that has been checked: configuration, weights and tokenizer are there."""

    name: str
    path: Path
    config: dict[str, Any]
    weight_files: tuple[Path, ...]

    @property
    def vocabulary(self) -> int:
        """Number of entries in the vocabulary, V."""
        return int(self.config["vocab_size"])

    @property
    def max_tokens(self) -> int:
        """The most tokens the model's positions allow."""
        return int(self.config["max_position_embeddings"])

    @property
    def window(self) -> int:
        """The sliding window in tokens.

        Where none is in effect (none stated, or longer than half the context): the length at which LongRoPE
        switches, else half the context, past which onnxruntime-genai#552 went wrong.
        """
        window = self.config.get("sliding_window")
        half = self.max_tokens // 2
        if window and int(window) <= half:
            return int(window)
        return min(half, int(self.config.get("original_max_position_embeddings") or half))

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end an answer: generation_config.json's, else config.json's."""
        generation = self.path / "generation_config.json"
        source = _read_json(generation) if generation.is_file() else self.config
        found = source.get("eos_token_id")
        if found is None:
            found = self.config.get("eos_token_id")
        if found is None:
            raise CheckpointError(f"{self.path} states no end token", "add eos_token_id to generation_config.json")
        return tuple(int(token) for token in (found if isinstance(found, list) else [found]))

    def fingerprint(self) -> Fingerprint:
        """Hash weights, tokenizer and configuration; weights are hashed once and remembered."""
        tokenizer = [self.path / name for name in _TOKENIZER_FILES if (self.path / name).is_file()]
        config = [p for p in (self.path / "config.json", self.path / "generation_config.json") if p.is_file()]
        config += sorted(self.path.glob("*.py"))
        return Fingerprint(
            weights=_hash_named((p.name, cached_sha256(p)) for p in self.weight_files),
            tokenizer=_hash_named((p.name, sha256_text(p)) for p in tokenizer),
            config=_hash_named((p.name, sha256_text(p)) for p in config),
        )

    def parameters(self) -> int:
        """Number of weights, from the safetensors headers."""
        return sum(_elements(entry) for path in self.weight_files for entry in read_header(path).values())


def find_checkpoint(name: str) -> Checkpoint:
    """A local folder, or a repository of the Hugging Face hub (its cache first, then the network).

    Raises CheckpointError when there is none, it is no Phi-3, or files are missing or corrupt. Code that a
    checkpoint brings is not looked at here: backends load with `trust_remote_code` off unless told.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        path = folder.resolve()
    elif folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise CheckpointError(
            f"there is no checkpoint folder {name!r}", "give --checkpoint a folder, or a hub name such as owner/model"
        )
    else:
        path = _from_hub(name)
    return open_checkpoint(path, name=_short_name(name))


def open_checkpoint(path: Path, *, name: str | None = None) -> Checkpoint:
    """Check a folder and return it as a checkpoint. Raises CheckpointError, see `find_checkpoint`."""
    config_path = path / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"{path} has no config.json", "give the folder of a Hugging Face Phi-3 checkpoint")
    config = _read_json(config_path)
    architectures = config.get("architectures") or []
    if "Phi3ForCausalLM" not in architectures:
        raise CheckpointError(
            f"{path} is not Phi-3: config.json names {architectures or 'no architecture'}, not Phi3ForCausalLM",
            "give a checkpoint of the Phi-3 family (Phi-3, Phi-3.5-mini, Phi-4, Phi-4-mini)",
        )
    _check_numbers(path, config)
    _check_rotary(path, config)
    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(f"{path} has no tokenizer.json", "download the checkpoint again, tokenizer included")
    return Checkpoint(name or path.name, path, config, _weight_files(path))


def _check_numbers(path: Path, config: dict[str, Any]) -> None:
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise CheckpointError(
                f"{path / 'config.json'}: {key} is {config.get(key)!r}, not a positive whole number",
                "restore the checkpoint's original config.json",
            )
    for key in ("sliding_window", "num_key_value_heads", "original_max_position_embeddings"):
        least = 0 if key == "sliding_window" else 1
        if config.get(key) is not None and (not isinstance(config[key], int) or config[key] < least):
            raise CheckpointError(
                f"{path / 'config.json'}: {key} is {config[key]!r}, neither null nor a positive whole number",
                "restore the checkpoint's original config.json",
            )


def _check_rotary(path: Path, config: dict[str, Any]) -> None:
    """Refuse the first name of LongRoPE, which transformers 5 takes for a configuration that lacks a key."""
    rope = config.get("rope_scaling")
    if isinstance(rope, dict) and "su" in (rope.get("type"), rope.get("rope_type")):
        raise CheckpointError(
            f"{path / 'config.json'}: rope_scaling is of type 'su', as LongRoPE was called at first; transformers 5 "
            "and all that is built on it cannot read that",
            'write "longrope" in its place, or download the checkpoint\'s newer revision',
        )


def _short_name(name: str) -> str:
    last = Path(name).name
    return Path(name).resolve().parent.name if last in ("checkpoint", ".", "") else last


def _from_hub(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_PATTERNS, local_files_only=True))
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is no hub name: {error}", "write owner/model, or give a folder") from None
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name} is not in the Hugging Face cache and cannot be downloaded: {_first_line(error)}",
            "connect to the network, check the name, or give --checkpoint a local folder",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _weight_files(path: Path) -> tuple[Path, ...]:
    index = path / "model.safetensors.index.json"
    if index.is_file() and (path / "model.safetensors").is_file():
        raise CheckpointError(f"{path} has both model.safetensors and {index.name}", "delete the one that is not meant")
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        found = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
        outside = sorted(name for name in found if Path(name).name != name)
        if outside:
            raise CheckpointError(f"{index} points outside its folder: {outside[0]}", "restore the original index")
        files = tuple(path / name for name in sorted(found))
    else:
        files = (path / "model.safetensors",)
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        pickled = sorted(p.name for p in path.glob("pytorch_model*.bin"))
        hint = "convert the pickled weights with save_pretrained" if pickled else "download the checkpoint again"
        raise CheckpointError(f"{path} lacks {', '.join(missing) or 'weights'} (safetensors only)", hint)
    for file in files:
        read_header(file)
    return files


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Dtype, shape and data offsets of every tensor in a safetensors file.

    Raises CheckpointError when the file is truncated or its header is no safetensors header.
    """
    remedy = "download the checkpoint again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, 100_000_000):
                raise CheckpointError(f"{path} is no safetensors file or is truncated ({size} bytes)", remedy)
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        promised = 8 + length + max((_end(entry) for entry in header.values()), default=0)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{path} has a corrupt safetensors header: {error}", remedy) from None
    if promised != size:
        raise CheckpointError(f"{path} is truncated: {size} bytes, its header promises {promised}", remedy)
    return dict(header)


def _end(entry: dict[str, Any]) -> int:
    """Where a tensor's data ends; raises what `read_header` catches unless the entry is whole."""
    begin, end = entry["data_offsets"]
    if (
        not isinstance(entry["dtype"], str)
        or len(entry["shape"]) > _MOST_AXES
        or not 0 <= begin <= end
        or _elements(entry) < 0
    ):
        raise ValueError(f"impossible entry {entry}")
    return int(end)


def _elements(entry: dict[str, Any]) -> int:
    count = 1
    for extent in entry["shape"]:
        count *= int(extent)
    return count


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "download the checkpoint again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object", "download the checkpoint again")
    return found


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(path: Path) -> str:
    """SHA-256 of a text file with line ends normalised, so that a Windows checkout hashes the same."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def cached_sha256(path: Path) -> str:
    """`sha256_file`, remembered for files over 64 MiB by path, size and time of change.

    15 GB take 10 s to hash, and are hashed in every run otherwise. The memory is a small JSON file in the
    user's cache folder; a corrupt one is made anew.
    """
    stat = path.stat()
    if stat.st_size < 64 << 20:
        return sha256_file(path)
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    folder = platformdirs.user_cache_path("phi3-conformance", appauthor=False)
    store = folder / "sha256.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / "sha256.lock"):
            known = _read_known(store)
            if key not in known:
                known[key] = sha256_file(path)
                partial = store.with_suffix(".partial")
                partial.write_text(json.dumps(known), encoding="utf-8")
                partial.replace(store)
        return known[key]
    except OSError:  # no place to remember it in
        return sha256_file(path)


def _read_known(store: Path) -> dict[str, str]:
    try:
        return dict(json.loads(store.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _hash_named(pairs: Iterator[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, value in pairs:
        digest.update(f"{name}\0{value}\n".encode())
    return digest.hexdigest()
