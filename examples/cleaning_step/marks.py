"""Marks that mean shouting, in a module of their own to show that it travels with the step."""

SHOUTED = r"!{2,}"
