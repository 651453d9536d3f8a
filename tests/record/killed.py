"""Trains under recording in forked children and kills them. Usage: killed.py DIRECTORY HOW_OFTEN"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from tests.record.truth import Case, run

CASE = Case(rows=40, arguments={"gradient_accumulation_steps": 2, "learning_rate": 0.01})
SETTINGS = {"num_train_epochs": 14}


class Witness(TrainerCallback):
    """Tells the parent of each finished step by one byte."""

    def __init__(self, pipe: int):
        self.pipe = pipe

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        os.write(self.pipe, b".")


def train_until_killed(place: Path, pipe: int) -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    run(CASE, place, callbacks=[Witness(pipe)], **SETTINGS)


def kill_once(place: Path, generator: random.Random) -> int:
    """Kills a child some time after some step. Returns the steps that it finished, as it said itself."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train_until_killed(place, writing)
        finally:
            os._exit(0)
    os.close(writing)
    steps = generator.randint(0, 60)
    told = 0
    while told < steps and (read := os.read(reading, steps - told)):
        told += len(read)
    time.sleep(generator.uniform(0.0, 0.01))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while read := os.read(reading, 4096):
        told += len(read)
    os.close(reading)
    return told


def main(directory: Path, times: int) -> None:
    torch.set_num_threads(1)
    generator = random.Random(0)
    for index in range(times):
        place = directory / f"run-{index}"
        place.mkdir()
        told = kill_once(place, generator)
        (place / "finished-steps").write_text(str(told))
    place = directory / "whole"
    run(CASE, place, **SETTINGS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
