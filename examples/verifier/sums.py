"""A reward that can be checked: the completion must be the answer of the prompt's record."""


def is_right(prompt: str, response: str, record: dict) -> float:
    return float(response.strip() == record["answer"])
