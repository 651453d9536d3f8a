"""Which files `mutation.py` changes, which tests have to notice, and which changes none can."""

from __future__ import annotations

_INFLUENCE, _SELECTION = "tests/influence/", "tests/selection/"
_AGREE = f"{_INFLUENCE}test_engines_agree.py"
_SKETCHED = (_AGREE, f"{_INFLUENCE}test_projected_runs.py")
_HOOKS = f"{_INFLUENCE}test_projected.py::test_hooks_give_the_gradient_of_every_example"
_ADJOINTS = ("tests/optimizers", "tests/testing/test_adjoint.py")
_BY_TRYING_ALL = (
    *("annealing", "choice", "classes", "distances", "harm"),
    *("linear", "pooling", "problem", "representation", "rounding"),
)
_METHODS = (f"{_SELECTION}test_tiny_problems.py", f"{_SELECTION}test_baselines.py", f"{_SELECTION}test_methods.py")

TESTS: dict[str, tuple[str, ...]] = {
    "hf_prune/optimizers/*.py": _ADJOINTS,
    "hf_prune/influence/clipping.py": (f"{_INFLUENCE}test_clipping.py",),
    "hf_prune/influence/removal.py": (f"{_INFLUENCE}test_clipping.py", _AGREE),
    "hf_prune/influence/calibration.py": (f"{_INFLUENCE}test_calibration.py",),
    "hf_prune/influence/queries.py": (f"{_INFLUENCE}test_queries.py",),
    "hf_prune/influence/dense/curvature.py": (
        f"{_INFLUENCE}test_step_work.py",
        f"{_INFLUENCE}test_gradients.py::test_both_ways_to_gauss_newton_agree",
        f"{_INFLUENCE}test_updates.py",
    ),
    "hf_prune/influence/dense/sweep.py": (f"{_INFLUENCE}test_updates.py", f"{_INFLUENCE}test_few_steps.py"),
    "hf_prune/influence/dense/engine.py": (
        _AGREE,
        f"{_INFLUENCE}test_projected.py::test_directions_in_chunks_are_the_directions_at_once",
    ),
    "hf_prune/influence/sketch/count_sketch.py": (f"{_INFLUENCE}test_count_sketch.py",),
    "hf_prune/influence/sketch/layer_rules.py": ("tests/testing/test_layer_rule.py",),
    "hf_prune/influence/sketch/logit_factors.py": (f"{_INFLUENCE}test_logit_factors.py",),
    "hf_prune/influence/sketch/per_example_vjp.py": (
        *(f"{_HOOKS}[{name}]" for name in ("mlp", "vit", "gpt2", "resnet")),
        f"{_INFLUENCE}test_projected.py::test_a_layer_that_no_hook_knows_is_left_to_vmap",
        f"{_INFLUENCE}test_projected.py::test_half_precision_gives_what_autograd_gives_in_it[mlp]",
    ),
    "hf_prune/influence/sketch/*.py": _SKETCHED,
    "hf_prune/selection/methods/*.py": _METHODS,
    "hf_prune/selection/certificate.py": (f"{_SELECTION}test_certificate.py",),
    "hf_prune/selection/evidence.py": ("tests/verification/test_probe.py",),
    "hf_prune/selection/buckets.py": (f"{_SELECTION}test_tiny_problems.py", f"{_SELECTION}test_buckets.py"),
    "hf_prune/selection/difficulty.py": (f"{_SELECTION}test_tiny_problems.py", f"{_SELECTION}test_difficulty.py"),
    **{
        f"hf_prune/selection/{name}.py": (f"{_SELECTION}test_tiny_problems.py", f"{_SELECTION}test_select.py")
        for name in _BY_TRYING_ALL
    },
}
"""Files by pattern, the first that fits, and their tests in the order in which they run."""

QUICK = {
    "hf_prune/influence/clipping.py": 2,
    "hf_prune/influence/removal.py": 2,
    "hf_prune/optimizers/sgd.py": 2,
    "hf_prune/influence/sketch/count_sketch.py": 2,
}
"""Mutants of each file in the quick profile."""

EQUIVALENT: dict[str, str] = {}
"""Survivors that no test can notice, and why."""
