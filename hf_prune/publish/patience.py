"""What the Hub answers when it cannot do something: for a moment, or for good."""

from __future__ import annotations

import random
import time
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

ATTEMPTS = 6
FIRST_WAIT = 0.5
"""Seconds; doubled each time."""
_FOR_A_MOMENT = (408, 425, 429, 500, 502, 503, 504)
_UNANSWERED = {"TransportError", "ConnectionError", "TimeoutError"}
"""By name, because the HTTP library below `huggingface_hub` has another one since its version 2."""


def wait(attempt: int) -> None:
    time.sleep(FIRST_WAIT * 2**attempt * (1 + random.random()))


def passing(error: BaseException) -> bool:
    """Whether trying again may help."""
    answer = status(error)
    return of_the_hub(error) and (answer is None or answer in _FOR_A_MOMENT)


def status(error: BaseException | None) -> int | None:
    """Returns the Hub's answer, None where there was none; `huggingface_hub` wraps some errors in others."""
    while error is not None:
        response: Any = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def of_the_hub(error: BaseException | None) -> bool:
    """Whether the Hub refused, or could not be reached."""
    while error is not None:
        if isinstance(error, HfHubHTTPError) or _UNANSWERED & {kind.__name__ for kind in type(error).__mro__}:
            return True
        error = error.__cause__
    return False
