"""The policy: which evidence suffices, and the limits of every compute class with their origin."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from harness.errors import PolicyError
from harness.target import DeviceKind, EvidenceLevel, Precision, Target, matches

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# From finest to coarsest; where a runtime computes more coarsely than the weights are stored, the
# arithmetic decides the class (OpenVINO computes an FP32 model in BF16 on processors that have it).
_COARSENESS = {Precision.FP32: 0, Precision.FP16: 1, Precision.BF16: 2, Precision.INT8: 3, Precision.INT4: 4}


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bound, and where it comes from: a measurement, a standard or a product's decision."""

    limit: float
    origin: str


class LogitLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds on the logits of one prompt: KL in nat, centred relative error without unit."""

    kl_mean: Limit
    kl_worst: Limit
    relative_mean: Limit
    relative_worst: Limit


class GreedyLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds on greedy decoding of one prompt, in units of the reference's centred RMS logit.

    `divergence_margin`: how far the golden may prefer its own token where the device first leaves it.
    `regret_worst`: how far the reference, on the device's own text, may prefer another token.
    """

    divergence_margin: Limit
    regret_worst: Limit


class SuiteLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on a whole suite: mean KL (upper, nat), top-1 agreement and greedy match (lower, shares)."""

    kl_mean: Limit
    top1_min: Limit
    greedy_match_min: Limit


class ClassLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All limits of one compute class."""

    logits: LogitLimits
    greedy: GreedyLimits
    suite: SuiteLimits


class ImplementationLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds on the implementation error of a compute class, as multiples of its yardstick.

    `mean` and `worst`: centred RMS logit error against the artifact reference over the yardstick's, the mean over
    positions and the worst position, prefill and decode apart; `suite_mean`: the mean over all positions of a suite.
    `regret`: logits by which the reference may prefer another token than the device's, over the yardstick's worst
    position in decode.
    """

    mean: Limit
    suite_mean: Limit
    worst: Limit
    regret: Limit


class EntryLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds on how far an entry of the vocabulary may be off on average over a suite: see `harness.vocabulary`.

    In multiples of the spread of the others; `total`: against the golden, `implementation`: against the artifact
    reference.
    """

    total: Limit
    implementation: Limit


class BusyLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a busy counter has moved, and when it has stood still: see `harness.attest.weigh`.

    `seconds_min`: seconds of work before a counter is believed at all. `share_min`: the least share of the
    work during which the device was busy. `idle_factor`: how many times the idle share is taken off first.
    `engines_max`: how many times the elapsed time a counter may claim, one for each engine that it adds up.
    """

    seconds_min: Limit
    share_min: Limit
    still_max: Limit
    idle_factor: Limit
    engines_max: Limit


class SignoffLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a quantised build must keep to, to be shipped; intervals are of 95 %.

    `kl_mean`: the upper end of the interval of mean KL, nat. `perplexity_change`: the upper end of that of the relative
    change of the perplexity, 0.05 for 5 %. `top1_min`: the lower end of that of top-1 agreement, a share.
    `greedy_match_min`: the share of the answered prompts that are answered as the golden answers them. `must_match`:
    the prompts among them whose answer must be the golden's; one without an answer fails.
    """

    kl_mean: Limit
    perplexity_change: Limit
    top1_min: Limit
    greedy_match_min: Limit
    must_match: tuple[str, ...] = ()


class ComparisonLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a second run is held to by `phi3-conformance diff`, beyond the outcomes of its cases; nothing by default.

    `slower_max`: the factor by which a latency may grow. One that grew by less than its measured noise is not judged.
    """

    slower_max: Limit | None = None


class SoakLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds on what a process may hold more with every round of a soak: the lower end of a slope's interval.

    Memory in MiB, of the machine and of the device, a load and a call (a prompt with its answer); handles and threads
    are counts a round of either kind.
    """

    memory_a_load: Limit
    memory_a_call: Limit
    device_memory: Limit
    handles: Limit
    threads: Limit


class SpeedLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds on the medians of targets that match a glob, in ms, after a prompt of so many tokens.

    Each target is timed at the lengths of its limits, too. By default there are none.
    """

    targets: str
    prompt_tokens: Annotated[int, msgspec.Meta(ge=1)]
    first_token_ms: Limit | None = None
    token_ms: Limit | None = None


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """policy.toml: which evidence suffices for which kind of device, and the limits by compute class."""

    schema: int
    attestation: dict[DeviceKind, EvidenceLevel]
    busy: BusyLimits
    limits: dict[Precision, ClassLimits]
    implementation: dict[str, ImplementationLimits] = {}
    comparison: ComparisonLimits = ComparisonLimits()
    entries: EntryLimits | None = None
    signoff: SignoffLimits | None = None
    soak: SoakLimits | None = None
    speed: tuple[SpeedLimits, ...] = ()

    def speed_of(self, target: Target) -> list[SpeedLimits]:
        """The limits on the speed of a target."""
        return [limits for limits in self.speed if matches(target, limits.targets)]

    def limits_of_signoff(self) -> SignoffLimits:
        """The limits of a sign-off. Raises PolicyError if there are none."""
        if self.signoff is None:
            raise PolicyError("the policy has no limits for a sign-off", "add a table [signoff]: see docs/sign-off.md")
        return self.signoff

    def limits_of_soak(self) -> SoakLimits:
        """The limits of a soak. Raises PolicyError if there are none."""
        if self.soak is None:
            raise PolicyError("the policy has no limits for a soak", "add a table [soak]: see conformance/policy.toml")
        return self.soak

    def implementation_of(self, compute_class: str) -> ImplementationLimits:
        """The limits on the implementation error of a class such as `fp32+a8`. Raises PolicyError if there are none."""
        if compute_class not in self.implementation:
            raise PolicyError(
                f"the policy has no limits on the implementation error of {compute_class}",
                f'add a table [implementation."{compute_class}"]',
            )
        return self.implementation[compute_class]

    def limits_of(self, compute_class: Precision) -> ClassLimits:
        """The limits of a compute class. Raises PolicyError when the policy has none."""
        if compute_class not in self.limits:
            raise PolicyError(
                f"the policy has no limits for {compute_class.value}", f"add a table [limits.{compute_class.value}]"
            )
        return self.limits[compute_class]


def read_policy(path: Path) -> Policy:
    """Read policy.toml. Raises PolicyError naming the field that breaks the schema."""
    try:
        policy = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Policy)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise PolicyError(f"{path}: {error}", "mend the file, or name another with --policy FILE") from None
    if policy.schema != 1:
        raise PolicyError(f"{path} has schema {policy.schema}; this version reads 1", "update the file")
    for kind in DeviceKind:
        if kind not in policy.attestation:
            raise PolicyError(f"{path} does not say which evidence suffices for a {kind.value}", "add it")
    for limits in policy.speed:
        if limits.first_token_ms is None and limits.token_ms is None:
            raise PolicyError(
                f"{path}: the speed of {limits.targets} at {limits.prompt_tokens} tokens has no limit",
                "give it first_token_ms, token_ms or both",
            )
    for name, limit in _limits(policy):
        if not math.isfinite(limit.limit) or not limit.origin.strip():
            raise PolicyError(f"{path}: {name} is not finite or has no origin", "give each limit both")
    return policy


def _limits(policy: Policy) -> Iterator[tuple[str, Limit]]:
    for key, limit in msgspec.structs.asdict(policy.busy).items():
        yield f"busy.{key}", limit
    for name, ratios in policy.implementation.items():
        for key, limit in msgspec.structs.asdict(ratios).items():
            yield f"implementation.{name}.{key}", limit
    if policy.signoff is not None:
        for key in ("kl_mean", "perplexity_change", "top1_min", "greedy_match_min"):
            yield f"signoff.{key}", getattr(policy.signoff, key)
    for key, limit in msgspec.structs.asdict(policy.entries).items() if policy.entries else ():
        yield f"entries.{key}", limit
    if policy.soak is not None:
        for key in ("memory_a_load", "memory_a_call", "device_memory", "handles", "threads"):
            yield f"soak.{key}", getattr(policy.soak, key)
    if policy.comparison.slower_max is not None:
        yield "comparison.slower_max", policy.comparison.slower_max
    for limits in policy.speed:
        for key in ("first_token_ms", "token_ms"):
            if (bound := getattr(limits, key)) is not None:
                yield f"speed of {limits.targets} at {limits.prompt_tokens} tokens, {key}", bound
    for precision, found in policy.limits.items():
        for group in ("logits", "greedy", "suite"):
            for key, limit in msgspec.structs.asdict(getattr(found, group)).items():
                yield f"limits.{precision.value}.{group}.{key}", limit


def compute_class(weights: Precision, arithmetic: Precision | None) -> Precision:
    """The class by whose limits a session is judged: the coarser of its weights and of its arithmetic."""
    if arithmetic is None:
        return weights
    return max(weights, arithmetic, key=lambda p: _COARSENESS[p])
