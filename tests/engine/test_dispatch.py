"""The dispatcher: each task ends once, killers are found, innocents are not blamed, suspects run alone."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tarmill.engine.dispatch import Dispatcher, Start


class Cluster:
    """A simulated cluster in which things happen in random order; `killers` kill their worker whenever they run."""

    def __init__(self, chance: random.Random, tasks: int, killers: set[int]) -> None:
        self.chance = chance
        self.killers = killers
        self.dispatcher = Dispatcher(range(tasks))
        self.slots: dict[str, int] = {}
        self.running: dict[str, list[Start]] = {}
        self.ended: list[int] = []
        self.given_up: list[int] = []
        self.names = iter(range(1_000_000))

    def run(self, fuel: int) -> None:
        while self.dispatcher.unfinished:
            assert fuel > 0, f"{self.dispatcher.unfinished} tasks never get their turn"
            fuel -= 1
            if not self.slots:
                self.join()
            for start in self.dispatcher.next_starts():
                self.start(start)
            self.happen()

    def join(self) -> None:
        name = f"worker-{next(self.names)}"
        self.slots[name] = self.chance.randint(1, 4)
        self.running[name] = []
        self.dispatcher.join(name, self.slots[name])

    def start(self, start: Start) -> None:
        beside = self.running[start.worker]
        assert len(beside) < self.slots[start.worker]
        assert not any(other.alone for other in beside), "something was put beside a suspect"
        assert not (start.alone and beside), "a suspect was put beside something"
        beside.append(start)

    def happen(self) -> None:
        busy = [name for name, starts in self.running.items() if starts]
        event = self.chance.choice(["end", "end", "end", "end", "kill", "kill", "join", "retire"])
        if event == "join" and len(self.slots) < 5:
            self.join()
        elif event == "retire":
            self.leave(self.chance.choice(list(self.slots)), blame=False)
        elif busy and event == "end":
            name = self.chance.choice(busy)
            start = self.chance.choice(self.running[name])
            if start.index not in self.killers:
                self.running[name].remove(start)
                assert self.dispatcher.end(start.index, start.attempt)
                assert not self.dispatcher.end(start.index, start.attempt), "an attempt ended twice"
                self.ended.append(start.index)
        elif event == "kill":
            doomed = [name for name in busy if any(start.index in self.killers for start in self.running[name])]
            if doomed:
                self.leave(self.chance.choice(doomed), blame=True)

    def leave(self, name: str, *, blame: bool) -> None:
        gone = self.running.pop(name)
        del self.slots[name]
        given_up = self.dispatcher.leave(name, blame=blame)
        self.given_up += given_up
        for start in gone:
            assert not self.dispatcher.end(start.index, start.attempt), "a dead worker's answer counted"


@given(st.randoms(use_true_random=False), st.integers(0, 30), st.sets(st.integers(0, 29), max_size=6))
def test_each_task_ends_once_and_only_killers_are_given_up(
    chance: random.Random, tasks: int, killers: set[int]
) -> None:
    killers = {index for index in killers if index < tasks}
    cluster = Cluster(chance, tasks, killers)
    cluster.run(fuel=2000 + 200 * tasks)
    assert sorted(cluster.ended) == sorted(set(range(tasks)) - killers)
    assert sorted(cluster.given_up) == sorted(killers)
    assert all(cluster.dispatcher.deaths(index) == 2 for index in killers)
    assert all(cluster.dispatcher.deaths(index) == 0 for index in cluster.ended)


def start_all(dispatcher: Dispatcher) -> list[tuple[int, str]]:
    return [(start.index, start.worker) for start in dispatcher.next_starts()]


def test_tasks_start_in_order_and_no_worker_gets_more_than_its_slots() -> None:
    dispatcher = Dispatcher(range(5))
    dispatcher.join("a", 2)
    dispatcher.join("b", 1)
    assert start_all(dispatcher) == [(0, "a"), (1, "b"), (2, "a")]
    assert start_all(dispatcher) == []
    assert dispatcher.waiting == 2


def test_a_suspect_gets_the_next_worker_that_becomes_empty() -> None:
    dispatcher = Dispatcher(range(6))
    dispatcher.join("a", 2)
    dispatcher.join("b", 2)
    start_all(dispatcher)
    dispatcher.leave("b")  # with 1 and 3
    assert start_all(dispatcher) == [], "a must drain for the suspects"
    assert dispatcher.end(0, 1)
    assert start_all(dispatcher) == []
    assert dispatcher.end(2, 1)
    (start,) = dispatcher.next_starts()
    assert (start.index, start.worker, start.attempt, start.alone) == (1, "a", 2, True)


def test_other_tasks_go_on_while_a_suspect_runs() -> None:
    dispatcher = Dispatcher(range(10))
    for name in ("a", "b", "c"):
        dispatcher.join(name, 2)
    start_all(dispatcher)
    dispatcher.leave("c")
    for index in (0, 3):
        dispatcher.end(index, 1)
    (suspect,) = dispatcher.next_starts()
    assert (suspect.worker, suspect.alone) == ("a", True)
    dispatcher.end(1, 1)
    assert start_all(dispatcher) == [(6, "b")], "half of the workers is kept for tasks that are no suspects"


def test_a_worker_that_is_told_to_go_blames_nobody() -> None:
    dispatcher = Dispatcher([7])
    for number in range(10):
        dispatcher.join(f"spot-{number}", 1)
        dispatcher.next_starts()
        assert dispatcher.leave(f"spot-{number}", blame=False) == []
    assert dispatcher.unfinished == 1
    assert dispatcher.attempts(7) == 10


def test_a_task_that_ends_with_its_worker_does_not_run_again() -> None:
    dispatcher = Dispatcher([1, 2])
    dispatcher.join("a", 2)
    start_all(dispatcher)
    assert dispatcher.leave("a", blame=False, ended={1}) == []
    assert dispatcher.unfinished == 1
    dispatcher.join("b", 2)
    assert start_all(dispatcher) == [(2, "b")]


def test_a_worker_that_joins_twice_keeps_what_it_runs() -> None:
    dispatcher = Dispatcher([1, 2])
    dispatcher.join("a", 1)
    start_all(dispatcher)
    dispatcher.join("a", 4)
    assert dispatcher.running_on("a") == [1]
    assert start_all(dispatcher) == []


def test_losing_an_unknown_worker_changes_nothing() -> None:
    dispatcher = Dispatcher([1])
    assert dispatcher.leave("nobody") == []
    assert dispatcher.unfinished == 1
