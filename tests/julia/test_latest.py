"""Room for what was used last."""

from __future__ import annotations

import threading

import pytest

from pynode.julia.latest import Latest


def test_the_latest_stay_and_the_others_are_forgotten() -> None:
    forgotten: list[int] = []
    made: list[str] = []
    latest: Latest[str, int] = Latest(2, forgotten.append)

    def get(key: str) -> int:
        return latest.get(key, lambda: made.append(key) or len(made))

    assert [get(key) for key in "abacab"] == [1, 2, 1, 3, 1, 4]  # "c" takes the place of "b", not of "a"
    assert (made, forgotten, len(latest)) == (["a", "b", "c", "b"], [2, 3], 2)


def test_making_one_may_need_another() -> None:
    latest: Latest[str, int] = Latest(4)
    assert latest.get("outer", lambda: 1 + latest.get("inner", lambda: 1)) == 2


def test_of_two_threads_that_make_one_value_both_get_the_first() -> None:
    forgotten: list[str] = []
    latest: Latest[str, str] = Latest(4, forgotten.append)
    both = threading.Barrier(2)
    got: list[str] = []

    def make(name: str) -> str:
        both.wait(10)
        return name

    threads = [
        threading.Thread(target=lambda name=name: got.append(latest.get("key", lambda: make(name)))) for name in "xy"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[0] == got[1]
    assert sorted([*forgotten, got[0]]) == ["x", "y"]


def test_what_could_not_be_made_is_not_kept() -> None:
    latest: Latest[str, int] = Latest(4)
    with pytest.raises(ZeroDivisionError):
        latest.get("key", lambda: 1 // 0)
    assert len(latest) == 0
    assert latest.get("key", lambda: 2) == 2
