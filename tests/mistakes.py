"""What every refusal must be: the rule, what was found, a remedy, and an object that is as before."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import sections

REMEDY = re.compile(r"\. (Add|Build|Call|Check|Choose|Convert|Correct|Fill|Hold|Leave|Lower|Name|Pass|Remove|Rename|Replace|"
                    r"Set|Store|Take|Use|Write)\b[^.].*\.$", re.DOTALL)  # fmt: skip


def explained(
    data: Any,
    call: Callable[[Any], object],
    error: type[Exception],
    says: str = "",
    remedy: re.Pattern[str] = REMEDY,
) -> None:
    """Assert that a call refuses an object in three parts, and leaves it as it is."""
    before = sections.digest(data)
    with pytest.raises(error) as caught:
        call(data)
    message = str(caught.value.args[0])
    assert type(caught.value) is error
    assert says in message
    assert message.startswith("Expected ")
    assert "; got " in message
    assert remedy.search(message), message
    assert sections.digest(data) == before
