"""A reward that can be checked: the completion must be the answer of the prompt's record."""


def is_right(prompt: str, completion: str, record: dict) -> float:
    return float(completion.strip() == record["answer"])
