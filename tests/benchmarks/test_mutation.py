"""The mutation run itself: what it changes, that it tells what no test sees, and a few mutants of core mathematics."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

mutants, mutation = pytest.importorskip("mutants"), pytest.importorskip("mutation")


def changes(source: str) -> list[str]:
    tree = ast.parse(source)
    return [f"{mutants._shown(place)} -> {mutants._shown(change)}" for place, change, _ in mutants._changes(tree)]


def test_a_mutant_is_one_change_of_what_is_computed():
    found = changes(
        '''
NUMBER = 3

@decorated(5)
def f(x: int = 7) -> "a - b":
    """Not 1 - 2 of this."""
    logger.warning(f"{x - 1}", x - 2)
    for row in tqdm(x, desc=1 - 3):
        x += row
    if x < 3:
        raise ValueError(4 - x)
    return np.sqrt(x).sum() - 1e-9 if not x else x[:2]
'''
    )
    assert found == [
        "x += row -> x -= row",
        "x += row -> pass",
        "x < 3 -> not x < 3",
        "x < 3 -> x <= 3",
        "3 -> 4",
        "not x -> x",
        "np.sqrt(x).sum() - 1e-09 -> np.sqrt(x).sum() + 1e-09",
        "np.sqrt(x).sum() - 1e-09 -> 1e-09 - np.sqrt(x).sum()",
        "np.sqrt(x).sum() -> np.sqrt(x).mean()",
        "np.sqrt(x) -> x",
        ":2 -> 2:",
        "2 -> 3",
    ]


def test_every_file_has_tests_and_every_equivalent_mutant_is_one():
    mutants = mutation.chosen("full")
    for mutant in mutants:
        assert mutation.tests_of(mutant)
    for test in {test for tests in mutation.TESTS.values() for test in tests}:
        assert (ROOT / test.partition("::")[0]).exists(), test
    names = [mutant.name for mutant in mutants]
    assert len(names) == len(set(names))
    assert set(mutation.EQUIVALENT) <= set(names)


def test_the_signs_of_the_drift_of_the_denominator_are_among_the_mutants():
    names = "\n".join(mutant.name for mutant in mutation.chosen("full", ("hf_prune/influence/sketch/",)))
    assert "sketch.log_scales - own.log_scales -> own.log_scales - sketch.log_scales" in names
    assert "log_scales - state.log_scales -> state.log_scales - log_scales" in names


def test_a_run_goes_on_from_the_file_of_the_one_before_where_a_mutant_is_still_one(tmp_path: Path):
    assert mutation.known(None) == mutation.known(tmp_path / "out.json") == {}
    clip_factor, other, *_ = mutation.mutants_of("hf_prune/influence/clipping.py")
    rows = [
        {"mutant": clip_factor.name, "result": "killed", "by": "a test"},
        {"mutant": next(iter(mutation.EQUIVALENT)), "result": "survived", "by": ""},
        {"mutant": other.name + " no more", "result": "killed", "by": "a test"},
    ]
    mutation.write(tmp_path / "out.json", "full", rows)
    found = mutation.known(tmp_path / "out.json")
    assert list(found.values()) == [rows[0], rows[1] | {"result": "equivalent"}]
    assert json.loads((tmp_path / "out.json").read_text())["summary"]["killed"] == 2


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("mutation") / "out.json"
    command = [sys.executable, "benchmarks/mutation.py", "--profile", "quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def test_a_few_mutants_of_core_mathematics_are_killed(quick: dict):
    assert quick["survivors"] == []
    assert quick["summary"]["mutants"] == len(quick["rows"]) == sum(mutation.QUICK.values())
    killed = [row for row in quick["rows"] if row["result"] == "killed"]
    assert len(killed) >= sum(mutation.QUICK.values()) - 1
    assert all("::test_" in row["by"] for row in killed)


def test_a_mutant_that_its_tests_do_not_look_at_survives():
    script = """
import mutation
clip_factor, *_ = mutation.mutants_of("hf_prune/influence/clipping.py")
file = "tests/influence/test_clipping.py"
print(mutation.outcome(clip_factor, (f"{file}::test_a_removal_is_the_change_of_the_summed_gradient",))[0])
print(mutation.outcome(clip_factor, (file,))[0])
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'benchmarks'}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["survived", "killed"], done.stderr
