"""Every error that the harness raises on purpose.

    HarnessError                what was wrong, and the remedy
    |-- UsageError              an option, target or file given by the user cannot be used
    |-- CheckpointError         not a usable Phi-3 checkpoint
    |-- ArtifactError           an artifact's weights cannot be read, or one of them cannot be mapped
    |-- PromptError             a prompt suite breaks its schema
    |-- PolicyError             policy.toml or waivers.toml breaks its schema, or lacks a limit
    |-- GoldenError             a golden is missing, stale, tampered with, truncated or foreign
    |-- RecordError             a run record cannot be written or read
    |-- PackageError            a sign-off's package cannot be written or read, or is not whole
    |-- ResourceError           too little memory or disk for what was asked
    |-- NotRun                  a case was not run, since its target was given up after repeated crashes
    |-- Unsupported             a case asks for what the session cannot do
    `-- StageError              a target failed at a stage: discover, prepare, load, run or compare
        |-- WorkerDied          its process ended, or had to be ended: how, and the tail of its log
        |-- WorkerTimeout       its process did not answer in time and was killed; where it hung
        `-- WorkerRaised        the runtime raised; carries its message and traceback

A message names what was wrong, what was found and the command or edit that mends it. None of these
is meant to be read as a traceback: the plugin and the command line print `str(error)`.
"""

from __future__ import annotations

import enum


class Stage(str, enum.Enum):
    """Where in the life of a target something went wrong."""

    DISCOVER = "discover"
    PREPARE = "prepare"
    LOAD = "load"
    RUN = "run"
    COMPARE = "compare"


# ENOSPC and EDQUOT, by number: Windows has no name for the second.
_FULL_DISK = (28, 122)


def is_full_disk(error: Exception) -> bool:
    """Whether an error says that a disk or a quota is full; safetensors says so in words only."""
    return getattr(error, "errno", None) in _FULL_DISK or "No space left" in str(error)


class HarnessError(Exception):
    """What was wrong, with the remedy on a line of its own where there is one."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem, remedy)

    def __str__(self) -> str:
        return f"{self.problem}\n  remedy: {self.remedy}" if self.remedy else self.problem


class UsageError(HarnessError):
    """An option, a target or a file named by the user cannot be used."""


class CheckpointError(HarnessError):
    """The folder or hub name is no usable Phi-3 checkpoint."""


class ArtifactError(HarnessError):
    """An artifact's files cannot be read, or a tensor in them is not one of the checkpoint's."""


class PromptError(HarnessError):
    """A prompt suite cannot be read or breaks its schema."""


class PolicyError(HarnessError):
    """policy.toml or waivers.toml cannot be read, breaks its schema or lacks a limit."""


class GoldenError(HarnessError):
    """A golden is missing, stale, tampered with, truncated or belongs to something else."""


class RecordError(HarnessError):
    """A run record cannot be written or read."""


class PackageError(HarnessError):
    """The package of a sign-off cannot be written or read, or its files are not those that its manifest lists."""


class ResourceError(HarnessError):
    """There is too little memory or disk for what was asked."""


class NotRun(HarnessError):
    """The target was given up after repeated crashes; its remaining cases are NOT_RUN."""


class Unsupported(HarnessError):
    """The case asks for what the session cannot do: a prompt longer than it was compiled for, a way back in a cache."""


class StageError(HarnessError):
    """A target failed at a stage; its outcome is ERROR(stage)."""

    def __init__(self, stage: Stage, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.stage = stage

    def __reduce__(self) -> tuple[type[StageError], tuple[Stage, str, str]]:
        return type(self), (self.stage, self.problem, self.remedy)


class WorkerDied(StageError):
    """The worker's process ended while something was asked of it.

    By a signal, by itself, or by the harness, when it held too much memory or garbled its connection.
    """


class WorkerTimeout(StageError):
    """The worker did not answer within the time allowed for the stage and was killed."""


class WorkerRaised(StageError):
    """The runtime raised inside the worker, which goes on living."""
