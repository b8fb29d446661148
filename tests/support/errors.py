"""How tests look at errors: the exact class, and the whole text."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def message_of(error: type[Exception], call: Callable[[], object]) -> str:
    """The text of the error that `call` raises, which must be of this very class."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    return str(caught.value)
