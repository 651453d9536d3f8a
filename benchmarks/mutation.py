"""
Which changes of core mathematics no test notices: one small change at a time, against the tests of its module.

A mutant is one changed operator, comparison, number, name or statement inside a function of the files in `TESTS`: a
sign turned, a difference the other way, a product for a quotient, `argmin` for `argmax`, a root or a line left out.
Messages, types, logging and numbers outside of functions (how much work is worth while, not what is right) stay as
they are. Each mutant is tested in a process of its own, forked from one that has imported everything and run nothing,
by its module's tests, the fast ones first, until one fails or the time is over (an endless loop is noticed too). Tests
that start further processes see unchanged code there. `EQUIVALENT` holds the survivors that no test can notice.

    nice -n 15 python benchmarks/mutation.py --profile full --out benchmarks/results/mutation.json --minutes 60
    python benchmarks/mutation.py --only hf_prune/influence/clipping.py

`quick` (a part of the tests of hf_prune) takes a few mutants of the fastest tests, `sample` 200 of all files, as many
of each file as there are, `full` all. A run goes on where the one before it that wrote the same file ended: what was
noticed is not tried again, what survived is. Begin a new file where a module's tests were changed or taken away.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mutants import ROOT, Mutant, mutants_of
from mutation_tests import EQUIVALENT, QUICK, TESTS

# What tests import, done once.
LIBRARIES = ("hf_prune", "hf_prune.testing", "pytest", "hypothesis", "tests.toys", "tests.influence.runs")
# As in tests/conftest.py: the libraries are imported before it.
SURROUNDINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MPLBACKEND": "agg",
}
UNMADE = "the change could not be made"
SAMPLE, SEED, SECONDS = 200, 0, 240


class _FirstFailure:
    """A plugin of pytest that notes which test failed."""

    def __init__(self) -> None:
        self.test = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.test:
            self.test = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        self.pytest_runtest_logreport(report)


def outcome(mutant: Mutant | None, tests: tuple[str, ...], seconds: float = SECONDS) -> tuple[str, str]:
    """`"killed"`, `"timeout"` or `"survived"`, and the test that noticed; without a mutant the code as it is."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(read)
        _test(mutant, tests, write)
    os.close(write)
    end = time.monotonic() + seconds
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout", ""
        time.sleep(0.05)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    if said == "passed":
        return "survived", ""
    if said == UNMADE:
        raise RuntimeError(f"{mutant}: {said}")
    return "killed", said or "the process died"


def _test(mutant: Mutant | None, tests: tuple[str, ...], write: int) -> None:
    """In the forked process: runs the tests and says which one failed."""
    said = UNMADE
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if mutant is not None:
            mutant.apply()
        failure = _FirstFailure()
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-profile", "first failure"]
        code = importlib.import_module("pytest").main([*options, *tests], plugins=[failure])
        said = "passed" if code == 0 else failure.test or f"pytest ended with {int(code)}"
    finally:
        os.write(write, said.encode())
        os._exit(0)


def chosen(profile: str, only: tuple[str, ...] = ()) -> list[Mutant]:
    """The mutants of a profile: a seeded draw, one file after the other until there are enough."""
    paths = sorted(str(path.relative_to(ROOT)) for name in TESTS for path in ROOT.glob(name))
    draw, found = random.Random(SEED), []
    if profile == "quick" and not only:
        return [mutant for path, count in QUICK.items() for mutant in draw.sample(mutants_of(path), count)]
    for path in dict.fromkeys(paths):
        own = [mutant for mutant in mutants_of(path) if mutant.name.startswith(only or path)]
        found.append(draw.sample(own, len(own)))
    turns = [mutant for turn in itertools.zip_longest(*found) for mutant in turn if mutant is not None]
    return turns if profile == "full" or only else turns[:SAMPLE]


def tests_of(mutant: Mutant) -> tuple[str, ...]:
    return next(tests for name, tests in TESTS.items() if Path(mutant.path).match(name))


def known(out: Path | None) -> dict[str, dict[str, Any]]:
    """What an earlier run found, by mutant, where the mutant is still one."""
    if out is None or not out.exists():
        return {}
    names = {mutant.name for mutant in chosen("full")}
    rows = [row for row in json.loads(out.read_text(encoding="utf-8"))["rows"] if row["mutant"] in names]
    for row in rows:
        if row["result"] == "survived" and row["mutant"] in EQUIVALENT:
            row["result"] = "equivalent"
    return {row["mutant"]: row for row in rows}


def summary_of(rows: list[dict[str, Any]]) -> dict[str, int]:
    counts = Counter(row["result"] for row in rows)
    return {"mutants": len(rows)} | {name: counts[name] for name in ("killed", "timeout", "equivalent", "survived")}


def write(out: Path, profile: str, rows: list[dict[str, Any]]) -> None:
    survivors = [row["mutant"] for row in rows if row["result"] == "survived"]
    result = {"name": "mutation", "profile": profile, "summary": summary_of(rows), "survivors": survivors}
    out.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--profile", choices=("quick", "sample", "full"), default="quick")
    parser.add_argument(
        "--only", nargs="+", default=(), help="only mutants whose name begins so: a directory, a file, or its function"
    )
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON, and to go on from")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further mutant after so long")
    options = parser.parse_args()
    mutants = chosen(options.profile, tuple(options.only))
    if options.list:
        print(*sorted(f"{mutant.name}  (line {mutant.line})" for mutant in mutants), sep="\n")
        return 0
    out = options.out.absolute() if options.out else None
    os.chdir(ROOT)
    os.environ.update(SURROUNDINGS)
    sys.path.insert(0, str(ROOT))
    for name in dict.fromkeys((*LIBRARIES, *(mutant.module for mutant in mutants))):
        importlib.import_module(name)
    rows, passing, end = known(out), set(), time.monotonic() + 60 * options.minutes
    for mutant in mutants:
        if mutant.name in rows and rows[mutant.name]["result"] != "survived":
            continue
        if time.monotonic() > end:
            break
        tests = tests_of(mutant)
        if tests not in passing and outcome(None, tests)[0] != "survived":
            print(f"Without any change one of {', '.join(tests)} fails or takes too long: mend that first.")
            return 2
        passing.add(tests)
        result, by = outcome(mutant, tests)
        if result == "survived" and mutant.name in EQUIVALENT:
            result = "equivalent"
        rows[mutant.name] = {"mutant": mutant.name, "result": result, "by": by}
        print(f"{result:10} {mutant.name}  (line {mutant.line}; {by or 'no test'})", flush=True)
        if out:
            write(out, options.profile, list(rows.values()))
    summary = summary_of(list(rows.values()))
    print(json.dumps(summary))
    return 1 if summary["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
