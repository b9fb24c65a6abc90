"""An example of a cleaning step. It drops texts in capital letters and shortens `!!!` to `!`.

A corpus config uses it like this:

steps:
  - user_step: {function: examples/cleaning_step/no_shouting.py:no_shouting}
"""

import re

from marks import EXCLAMATION_MARKS


def no_shouting(text: str) -> str | None:
    """Return the text with `!` instead of several exclamation marks in a row, or None to drop the text."""
    return None if text.isupper() else re.sub(EXCLAMATION_MARKS, "!", text)
