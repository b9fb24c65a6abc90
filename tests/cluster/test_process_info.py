"""A process of a run is told apart by whatever is known of it."""

from cluster.process_info import ProcessInfo


def test_a_process_matches_whatever_is_asked_of_it_and_two_nodes_may_have_the_same_process_id() -> None:
    first, second = (ProcessInfo(stage="sft", role="rank", index=n, pid=7, ip=f"192.0.2.{n}") for n in (1, 2))
    assert [process.matches(pid=7, ip="192.0.2.2") for process in (first, second)] == [False, True]
    assert first.matches(pid=7) and first.matches() and not first.matches(role="rank", index=2)


def test_a_sentence_names_the_process_and_its_log() -> None:
    process = ProcessInfo(stage="rlhf", role="generator", index=0, node="n1", pid=17, log="/logs/worker.log")
    assert process.sentence("died") == "rlhf: generator 0 on node n1 (pid 17) died; log: /logs/worker.log"
