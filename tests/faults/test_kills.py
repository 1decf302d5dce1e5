"""kill -9 of a writer, at every named point of a commit and at random moments: nothing acknowledged is ever lost.

The lives follow each other on one database, which is audited at the end. tests/faults/test_power_cuts.py kills inside
the system calls of a commit.
"""

from __future__ import annotations

import random

import pytest

from tests.databases import StoreFactory
from tests.faults.crashes import Crashes

KILLS = {"sqlite": 35, "postgresql": 4}  # at each point
MOMENTS = {"sqlite": 100, "postgresql": 10}


@pytest.mark.parametrize("point", ["before_checkpoint", "before_commit", "after_commit_before_ack"])
def test_kill_at_a_named_point(store_factory: StoreFactory, point: str) -> None:
    crashes = Crashes(store_factory, store_factory())
    kills = KILLS[store_factory.kind]
    for number in range(kills):
        crashes.live(point=point, countdown=1 + number % 4)
    assert crashes.kills == crashes.doubts == kills
    assert bool(crashes.came_through) == (point == "after_commit_before_ack")
    in_the_log = crashes.verify() - crashes.founded - len(crashes.acknowledged)
    assert bool(in_the_log) == (point == "after_commit_before_ack")


def test_kill_at_random_moments(store_factory: StoreFactory) -> None:
    crashes = Crashes(store_factory, store_factory())
    moments = random.Random(20_261)
    for _ in range(MOMENTS[store_factory.kind]):
        crashes.live(seconds=moments.uniform(0.0, 0.06))
    assert crashes.kills == MOMENTS[store_factory.kind]
    assert len(crashes.acknowledged) > crashes.kills
    in_doubt = sum(map(len, crashes.in_doubt))
    assert 0 <= crashes.verify() - crashes.founded - len(crashes.acknowledged) <= in_doubt
