"""An example of a verifier, which is a reward function. The reward is 1 if the completion is the correct answer."""


def is_right(prompt: str, completion: str, record: dict) -> float:
    """Return 1.0 if the completion equals the field `answer` of the prompt's record, else 0.0."""
    return float(completion.strip() == record["answer"])
