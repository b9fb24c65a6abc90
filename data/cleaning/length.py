"""Documents of a length within bounds, in bytes of UTF-8."""

from dataclasses import dataclass

from data.cleaning.step import Outcome, check_least, judged


@dataclass(frozen=True, kw_only=True)
class Length:
    """Documents of a length within bounds, in bytes of UTF-8."""

    min_bytes: int = 0
    """A shorter text is dropped."""
    max_bytes: int | None = None
    """A longer text is dropped; null sets no bound."""

    def check(self, where: str) -> None:
        check_least(f"{where}.min_bytes", self.min_bytes, 0)
        if self.max_bytes is not None and self.max_bytes < max(self.min_bytes, 1):
            raise ValueError(f"{where}.max_bytes: {self.max_bytes} must be at least min_bytes ({self.min_bytes})")


def length(texts: list[str], rule: Length) -> Outcome:
    def judge(text: str) -> str | None:
        num_bytes = len(text.encode())
        if num_bytes < rule.min_bytes:
            return "length/min_bytes"
        if rule.max_bytes is not None and num_bytes > rule.max_bytes:
            return "length/max_bytes"
        return None

    return judged(texts, judge)
