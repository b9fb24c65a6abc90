"""Patterns of `no_shouting.py`. They are in a second file to show that Raymill ships imported files to the cluster."""

EXCLAMATION_MARKS = r"!{2,}"
