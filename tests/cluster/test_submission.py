"""A job is sent to a head that is still coming up; what is refused for another reason is refused at once."""

from collections.abc import Callable

import pytest

from cluster.submission import once_an_agent_is_up

NO_AGENT = "Request failed with status code 500: No available agent to submit job, please try again later.."


def answering(*answers: str | None) -> tuple[Callable[[], None], list[str | None]]:
    """A sender that is given one answer after the other (None is a success), and what it has been given."""
    left, given = list(answers), []

    def send() -> None:
        given.append(left.pop(0) if len(left) > 1 else left[0])
        if given[-1] is not None:
            raise RuntimeError(given[-1])

    return send, given


def test_a_head_without_an_agent_is_waited_for() -> None:
    send, given = answering(NO_AGENT, NO_AGENT, None)
    once_an_agent_is_up(send, pause_s=0.0)
    assert given == [NO_AGENT, NO_AGENT, None]


def test_another_refusal_is_told_at_once() -> None:
    send, given = answering("Request failed with status code 400: this id is taken", None)
    with pytest.raises(RuntimeError, match="this id is taken"):
        once_an_agent_is_up(send, pause_s=0.0)
    assert len(given) == 1


def test_an_agent_that_never_comes_ends_the_wait_at_its_limit() -> None:
    send, given = answering(NO_AGENT)
    with pytest.raises(RuntimeError, match="No available agent"):
        once_an_agent_is_up(send, limit_s=0.05, pause_s=0.01)
    assert len(given) > 1
