"""One adapter after the other, each started once for all tests of the contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adapters import SINGULAR, TARGETS, Adapter, opened
from harness.checkpoint import Checkpoint, find_checkpoint
from harness.options import DEFAULT_CHECKPOINT
from harness.target import Unavailable


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return find_checkpoint(str(DEFAULT_CHECKPOINT))


@pytest.fixture(scope="session", params=TARGETS)
def opened_adapter(
    request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Adapter]:
    with opened(request.param, checkpoint, tmp_path_factory.mktemp("worker")) as adapter:
        found = adapter.discover()
        if adapter.backend.name == SINGULAR and isinstance(found, Unavailable):
            pytest.skip(str(found))  # the library takes an NPU if there is one
        yield adapter


@pytest.fixture
def adapter(opened_adapter: Adapter) -> Adapter:
    """One after the other of the targets, loaded with the runtime's defaults."""
    assert opened_adapter.info
    return opened_adapter
