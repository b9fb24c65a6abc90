"""The step `length`: keep documents whose length, in bytes of UTF-8, is within bounds."""

from dataclasses import dataclass

from data.cleaning.step import Outcome, check_at_least, filter_outcome


@dataclass(frozen=True, kw_only=True)
class Length:
    """Keep documents whose length, in bytes of UTF-8, is within bounds."""

    min_bytes: int = 0
    """Drop documents that are shorter than this."""
    max_bytes: int | None = None
    """Drop documents that are longer than this. Null sets no maximum."""

    def check(self, field_path: str) -> None:
        check_at_least(f"{field_path}.min_bytes", self.min_bytes, 0)
        if self.max_bytes is None:
            return
        check_at_least(f"{field_path}.max_bytes", self.max_bytes, 1)
        if self.max_bytes < self.min_bytes:
            raise ValueError(f"{field_path}.max_bytes: {self.max_bytes} must be at least min_bytes ({self.min_bytes})")


def length(texts: list[str], settings: Length) -> Outcome:
    def drop_reason(text: str) -> str | None:
        num_bytes = len(text.encode())
        if num_bytes < settings.min_bytes:
            return "length/min_bytes"
        if settings.max_bytes is not None and num_bytes > settings.max_bytes:
            return "length/max_bytes"
        return None

    return filter_outcome(texts, drop_reason)
