"""The step `length`."""

from data.cleaning.length import Length, length


def test_length_counts_bytes_and_keeps_documents_at_its_bounds() -> None:
    settings = Length(min_bytes=4, max_bytes=6)
    assert length(["abc", "éé", "abcdef", "abcdefg"], settings).reasons == [
        "length/min_bytes",
        None,
        None,
        "length/max_bytes",
    ]
