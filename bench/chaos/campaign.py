"""The campaign: as many faults of each kind as are asked for, and the table of them."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

import flows.albat  # noqa: F401 - before a fork
from albat_core.seeding import numpy_generator
from bench.chaos import flips, kills, prefect_faults, s3
from bench.chaos.outcome import BEGIN, END, Notes, Trial, joined, masked
from bench.chaos.storms import PATTERNS
from bench.chaos.toy import at, carry_out, undisturbed, write_toy

KILL, S3_KILL = "kill -9, local", "kill -9, S3"
FLIP, STORM, PREFECT = "a bit flipped: ", "S3: ", "Prefect: "
KILLED = "`Killed`; the next run takes up what was finished"
REWRITTEN = "nothing: it is written anew, or was a hint"


def main(folder: Path, arguments: Sequence[str]) -> int:
    """Do as many faults as are asked for; return how many kinds were not survived.

    Args:
        folder: for all that is written.
        arguments: of the command.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=0, help="kill -9 of runs on a local root")
    parser.add_argument("--s3-kills", type=int, default=0, help="the same on S3")
    parser.add_argument("--flips", type=int, default=0, help="bits flipped in what is kept")
    parser.add_argument("--storms", type=int, default=0, help="patterns of faults of S3")
    parser.add_argument("--prefect", type=int, default=0, help="faults of Prefect's server")
    parser.add_argument("--only", help="of these two, those whose name has this in it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--notes", type=Path, help="file of what was done, which is not done again")
    parser.add_argument("--out", type=Path, help="page whose table gets the lines of what was done")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    notes = Notes(asked.notes)
    _do(asked, folder, notes)
    kinds = notes.kinds.values()
    if asked.out:
        text = asked.out.read_text(encoding="utf-8")
        begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
        done = joined(text[begin:end], kinds)
        asked.out.write_text(text[:begin] + done + text[end:], encoding="utf-8")
    else:
        done = joined("", kinds)
    print(done)
    return sum(bool(kind.wrong) for kind in kinds)


def _do(asked: argparse.Namespace, folder: Path, notes: Notes) -> None:
    """Do the faults that are not done yet, and note each trial under its kind."""

    def note(kind: str, trials: Iterable[Trial], silent: str = "nothing: the run goes on") -> None:
        for trial in trials:
            notes.note(kind, silent, trial)
            how = f"WRONG: {'; '.join(trial.wrong)}" if trial.wrong else "survived"
            told = masked(trial.told[0]) if trial.told else silent
            print(f"{kind}: {trial.fault}: {how}; {told}", file=sys.stderr, flush=True)

    def missing(prefix: str, names: Sequence[str]) -> list[str]:
        named = [name for name in names if not asked.only or asked.only in name]
        return [name for name in named if f"{prefix}{name}" not in notes.kinds]

    draw = partial(numpy_generator, asked.seed, "chaos")
    killed, killed_on_s3, flipped = map(notes.count, (KILL, S3_KILL, FLIP))
    patterns = missing(STORM, list(PATTERNS)[: asked.storms])
    of_prefect = missing(PREFECT, prefect_faults.NAMES[: asked.prefect])
    local = asked.kills > killed or asked.flips > flipped
    on_s3 = asked.s3_kills > killed_on_s3 or bool(patterns)
    if not (local or on_s3 or of_prefect):
        return
    config = write_toy(folder / "toy")
    carry_out(at(config, str(folder / "warm")))  # so that children are forked with all imported
    if local:
        given = (draw, config, undisturbed(config))
        note(KILL, kills.kill_runs(killed, asked.kills, *given, folder / "trial"), KILLED)
        for family, trial in flips.flip_bits(flipped, asked.flips, *given, folder / "flips"):
            note(f"{FLIP}{family}", [trial], REWRITTEN)
    if on_s3:
        (folder / "s3").mkdir()
        with s3.bucket(folder / "s3") as there:
            wanted = s3.wanted_of(there)
            left = s3.kill_on_s3(killed_on_s3, asked.s3_kills, draw, there, wanted)
            note(S3_KILL, left, KILLED)
            for name, trial in s3.storm(patterns, draw, there, wanted):
                note(f"{STORM}{name}", [trial])
    if of_prefect:
        given = (draw, config, undisturbed(config))
        for name, trial in prefect_faults.disturb(of_prefect, *given, folder / "flows"):
            note(f"{PREFECT}{name}", [trial])
