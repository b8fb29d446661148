"""What every benchmark has when it runs as a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastcap.model.forward import forget_compiled, has_compiled


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small operations are slower on several threads, and much slower on busy ones."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """What one test compiled is not the next one's affair."""
    yield
    if has_compiled():
        forget_compiled()
