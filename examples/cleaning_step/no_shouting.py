"""A cleaning step: texts in capital letters are dropped, and rows of exclamation marks are shortened to one.

steps:
  - user_step: {function: examples/cleaning_step/no_shouting.py:no_shouting}
"""

import re

from marks import SHOUTED


def no_shouting(text: str) -> str | None:
    """The text with single exclamation marks, or None, which drops it."""
    return None if text.isupper() else re.sub(SHOUTED, "!", text)
