"""Where everything lies in a Phi-3 checkpoint: names, shapes, and the rows that a part of a fused tensor takes.

A checkpoint fuses query, key and value, and gate and up; an artifact may hold them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from harness.errors import ArtifactError, CheckpointError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"


class Place(msgspec.Struct, frozen=True):
    """Where a tensor of an artifact belongs: `name` of the checkpoint's, its first row there, and its own shape."""

    name: str
    row: int
    shape: tuple[int, ...]


class Layout(msgspec.Struct, frozen=True):
    """The extents that the shapes of all tensors follow from."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Layout:
        """The layout that a checkpoint's config.json describes. Raises CheckpointError where it lacks a number."""
        try:
            heads = int(config["num_attention_heads"])
            return cls(
                hidden=int(config["hidden_size"]),
                intermediate=int(config["intermediate_size"]),
                layers=int(config["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_size=int(config.get("head_dim") or config["hidden_size"] // heads),
                vocabulary=int(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings")),
            )
        except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
            raise CheckpointError(
                f"config.json lacks a number of the architecture: {error!r}", "restore the checkpoint's original"
            ) from None

    def place(self, part: str, layer: int = 0) -> Place:
        """Where a part belongs, by its module's name: `qkv_proj`, `q_proj`, `gate_proj`, `input_layernorm`, `norm`...

        Raises KeyError for a part that Phi-3 does not have.
        """
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        if part in ("embed_tokens", "lm_head", "norm"):
            name = {"embed_tokens": EMBEDDING, "lm_head": HEAD, "norm": NORM}[part]
            return Place(name, 0, (self.hidden,) if part == "norm" else (self.vocabulary, self.hidden))
        module, row, shape = {
            "qkv_proj": ("self_attn.qkv_proj", 0, (query + 2 * key, self.hidden)),
            "q_proj": ("self_attn.qkv_proj", 0, (query, self.hidden)),
            "k_proj": ("self_attn.qkv_proj", query, (key, self.hidden)),
            "v_proj": ("self_attn.qkv_proj", query + key, (key, self.hidden)),
            "o_proj": ("self_attn.o_proj", 0, (self.hidden, query)),
            "gate_up_proj": ("mlp.gate_up_proj", 0, (2 * self.intermediate, self.hidden)),
            "gate_proj": ("mlp.gate_up_proj", 0, (self.intermediate, self.hidden)),
            "up_proj": ("mlp.gate_up_proj", self.intermediate, (self.intermediate, self.hidden)),
            "down_proj": ("mlp.down_proj", 0, (self.hidden, self.intermediate)),
            "input_layernorm": ("input_layernorm", 0, (self.hidden,)),
            "post_attention_layernorm": ("post_attention_layernorm", 0, (self.hidden,)),
        }[part]
        return Place(f"model.layers.{layer}.{module}.weight", row, shape)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint with its shape; the LM head too where it is tied to the embedding."""
        parts = ("input_layernorm", "qkv_proj", "o_proj", "post_attention_layernorm", "gate_up_proj", "down_proj")
        places = [self.place("embed_tokens")]
        places += [self.place(part, layer) for layer in range(self.layers) for part in parts]
        places += [self.place("norm"), self.place("lm_head")]
        return {place.name: place.shape for place in places}

    def check_complete(self, places: Iterable[Place]) -> None:
        """Raise ArtifactError unless the places cover every row of every tensor once; a tied LM head may be missing."""
        rows: dict[str, list[tuple[int, int]]] = {}
        for place in places:
            rows.setdefault(place.name, []).append((place.row, place.shape[0]))
        for name, shape in self.shapes().items():
            if name not in rows and not (name == HEAD and self.tied):
                raise ArtifactError(f"the artifact has no {name}", "export it again, or see which layer was left out")
            end = 0
            for row, count in sorted(rows.get(name, [(0, shape[0])])):
                if row != end:
                    which = f"lacks rows {end} to {row - 1}" if row > end else f"has row {row} more than once"
                    raise ArtifactError(f"{name}: the artifact {which}", "export it again")
                end = row + count
            if end != shape[0]:
                raise ArtifactError(f"{name}: the artifact has {end} rows for {shape[0]}", "export it again")
