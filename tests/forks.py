"""
Forked processes that are killed, wait for each other, or are told to fail.

Forks start in no time, so one test can try many. They come from a process that has imported everything and trained
nothing: not from pytest, but from a module that a test starts by [`run_module`].
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree", "ctypes.call_function")
KILLED = -signal.SIGKILL


class Killer:
    """
    An audit hook that kills its process, as `kill -9` does, at one of the moments between changes of files.

    Args:
        directory (`Path`): Below it.
        moment (`int`): How many such moments pass before.
    """

    def __init__(self, directory: Path, moment: int):
        self.directory, self.left = str(directory), moment

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and (event.startswith("ctypes") or self.directory in str(arguments[:1])):
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def fork(work: Callable[[], Any], said: Path | None = None) -> int:
    """Runs `work` in a forked process and returns its number; an error is written to the file `said`."""
    gc.freeze()  # a collection in the fork, which trainings begin with, would copy all of the memory
    child = os.fork()
    if child:
        return child
    status = 0
    try:
        work()
    except BaseException as error:
        status = 1
        if said is None:
            traceback.print_exc()
        else:
            said.write_text(f"{type(error).__name__}: {error}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def ended(child: int) -> int:
    """Waits for a forked process: its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(moment: int, directory: Path, work: Callable[[], Any]) -> int:
    """Runs `work` in a forked process that is killed at this moment of its changes below `directory`."""

    def watched() -> None:
        sys.addaudithook(Killer(directory, moment))
        work()

    return ended(fork(watched))


@contextmanager
def launched(rank: int, port: int, timeout: timedelta | None = None, world: int = 2) -> Iterator[None]:
    """This forked process as one of a launch on the CPU, with a timeout of the process group."""
    import torch.distributed as dist
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"})
    AcceleratorState._reset_state(True)
    PartialState(cpu=True, **({} if timeout is None else {"timeout": timeout}))
    yield
    dist.destroy_process_group()


def in_two(
    work: Callable[[int], Any], timeout: timedelta | None = None, said: Callable[[int], Path] | None = None
) -> list[int]:
    """Runs `work(rank)` in two forked processes of one launch; returns how they ended."""
    from transformers.testing_utils import get_torch_dist_unique_port

    port = get_torch_dist_unique_port()

    def one(rank: int) -> Callable[[], None]:
        def own() -> None:
            with launched(rank, port, timeout):
                work(rank)

        return own

    children = [fork(one(rank), None if said is None else said(rank)) for rank in range(2)]
    return [ended(child) for child in children]


def run_module(module: str, *arguments: Any, timeout: float = 300) -> Any:
    """Runs `python -m module ARGUMENTS` and returns the JSON that its last line is."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-8000:]
    return json.loads(done.stdout.splitlines()[-1])
