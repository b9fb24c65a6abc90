"""Tests of matching and describing the processes of a run."""

from cluster.process_info import ProcessInfo


def test_a_process_matches_by_any_of_its_values_and_process_ids_are_compared_with_the_node() -> None:
    first, second = (ProcessInfo(stage="sft", role="rank", index=n, pid=7, ip=f"192.0.2.{n}") for n in (1, 2))
    assert [process.matches(pid=7, ip="192.0.2.2") for process in (first, second)] == [False, True]
    assert first.matches(pid=7) and first.matches() and not first.matches(role="rank", index=2)


def test_sentence_contains_the_process_and_its_log() -> None:
    process = ProcessInfo(stage="rlhf", role="generator", index=0, node="n1", pid=17, log="/logs/worker.log")
    assert process.sentence("died") == "rlhf: generator 0 on node n1 (pid 17) died; log: /logs/worker.log"
