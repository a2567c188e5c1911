"""Kill -9 at random moments of a run, until one is left to end."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from albat_core.runs.config import RunConfig
from bench.chaos.children import Ended, Moment, in_child
from bench.chaos.outcome import Draw, Trial
from bench.chaos.toy import Wanted, at, carry_out, differences, promote_and_watch


def moments(draw: np.random.Generator, wanted: Wanted) -> Iterator[Moment]:
    """Yield when children are killed: by turns after a time, and before a write."""
    while True:
        yield Moment(seconds=float(draw.uniform(0, wanted.seconds)))
        yield Moment(write=int(draw.integers(1, wanted.writes + 1)))


def kill_runs(
    done: int, count: int, draw: Draw, config: RunConfig, wanted: Wanted, folder: Path
) -> Iterator[Trial]:
    """Kill runs on a local root; those that share one are survived or wrong together.

    Args:
        done: kills before these.
        count: of kills with those.
        draw: says when.
        config: of the run.
        wanted: what it comes to undisturbed.
        folder: for roots.
    """
    while done < count:
        its = at(config, str(folder))
        when, killed = moments(draw("kills", done), wanted), list[Moment]()
        while not killed:  # a run may be over before its moment
            shutil.rmtree(folder, ignore_errors=True)
            killed, ended = killed_until_done(its, when, count - done)
        yield from judged(killed, ended, its, wanted)
        done += len(killed)
    shutil.rmtree(folder, ignore_errors=True)


def killed_until_done(
    config: RunConfig, when: Iterator[Moment], most: int
) -> tuple[list[Moment], Ended]:
    """Start a run again and again, each killed at its moment, until one is over before that.

    Args:
        config: of the run.
        when: each is killed.
        most: kills.
    """
    killed: list[Moment] = []
    while True:
        moment = next(when) if len(killed) < most else None
        ended = in_child(lambda: carry_out(config), moment)
        if not ended.killed or moment is None:
            return killed, ended
        killed.append(moment)


def judged(
    killed: list[Moment], ended: Ended, config: RunConfig, wanted: Wanted
) -> Iterator[Trial]:
    """Yield what became of each kill, from how the run that was left to end did."""
    wrong: list[str] = []
    if not ended.finished:
        wrong.append(ended.broke or ended.told[0])
    else:
        in_child(lambda: promote_and_watch(config))
        wrong += differences(config, wanted)
    for moment in killed:
        yield Trial(f"kill -9 at {moment}", tuple(wrong), ended.told)
