"""The campaign: as many faults of each kind as are asked for, and the table of them."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

import flows.albat  # noqa: F401 - before a fork
from albat_core.seeding import numpy_generator
from bench.chaos import flips, kills, prefect_faults, s3
from bench.chaos.outcome import Kind, Trial, masked, table
from bench.chaos.toy import at, carry_out, undisturbed, write_toy

BEGIN, END = "<!-- table -->\n", "\n<!-- end of the table -->"
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="page whose table is written anew")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kinds: dict[str, Kind] = {}
    _do(asked, folder, kinds)
    done = table(list(kinds.values()))
    print(done)
    if asked.out:
        text = asked.out.read_text()
        before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
        asked.out.write_text(before + done + after)
    return sum(bool(kind.wrong) for kind in kinds.values())


def _do(asked: argparse.Namespace, folder: Path, kinds: dict[str, Kind]) -> None:
    """Do the faults, and note each trial under its kind."""

    def note(name: str, trials: Iterable[Trial], silent: str = "nothing: the run goes on") -> None:
        for trial in trials:
            kinds.setdefault(name, Kind(name, silent)).trials.append(trial)
            how = f"WRONG: {'; '.join(trial.wrong)}" if trial.wrong else "survived"
            told = masked(trial.told[0]) if trial.told else silent
            print(f"{name}: {trial.fault}: {how}; {told}", file=sys.stderr, flush=True)

    def draw(name: str) -> np.random.Generator:
        return numpy_generator(asked.seed, "chaos", name)

    config = write_toy(folder / "toy")
    carry_out(at(config, str(folder / "warm")))  # so that children are forked with all imported
    if asked.kills or asked.flips:
        wanted = undisturbed(config)
        given = (config, wanted, folder / "trial")
        note("kill -9, local", kills.kill_runs(asked.kills, draw("kills"), *given), KILLED)
        flipping = flips.flip_bits(asked.flips, draw("flips"), config, wanted, folder / "flips")
        for family, trial in flipping:
            note(f"a bit flipped: {family}", [trial], REWRITTEN)
    if asked.storms or asked.s3_kills:
        (folder / "s3").mkdir()
        with s3.bucket(folder / "s3") as there:
            wanted = s3.wanted_of(there)
            killed = s3.kill_on_s3(asked.s3_kills, draw("s3 kills"), there, wanted)
            note("kill -9, S3", killed, KILLED)
            for name, trial in s3.storm(asked.storms, draw("storms"), there, wanted):
                note(f"S3: {name}", [trial])
    if asked.prefect:
        wanted = undisturbed(config)
        faults = prefect_faults.disturb(
            asked.prefect, draw("prefect"), config, wanted, folder / "flows"
        )
        for name, trial in faults:
            note(f"Prefect: {name}", [trial])
