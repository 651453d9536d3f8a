"""Which files `mutation.py` changes, which tests have to notice, and which changes none can."""

from __future__ import annotations

_INFLUENCE, _SELECTION, _ATTRIBUTION = "tests/influence/", "tests/selection/", "tests/attribution/"
_TINY = (f"{_SELECTION}test_tiny_problems.py", f"{_SELECTION}test_tiny_choices.py")
_AGREE = f"{_INFLUENCE}test_engines_agree.py"
_SKETCHED = (_AGREE, f"{_INFLUENCE}test_projected_runs.py")
_HOOKS = f"{_INFLUENCE}test_projected.py::test_hooks_give_the_gradient_of_every_example"
_VMAP = f"{_INFLUENCE}test_projected.py::test_a_layer_that_no_hook_knows_is_left_to_vmap"
_TOKENS = f"{_INFLUENCE}test_token_head.py"
_ADJOINTS = ("tests/optimizers", "tests/testing/test_adjoint.py")
_BY_TRYING_ALL = (
    *("annealing", "choice", "classes", "distances", "harm"),
    *("linear", "pooling", "problem", "representation", "rounding"),
)
_METHODS = (
    *_TINY,
    f"{_SELECTION}test_baselines.py",
    f"{_SELECTION}test_select.py::test_baselines_choose_as_their_names_say",
    f"{_SELECTION}test_prune_properties.py",
    f"{_SELECTION}test_methods.py",
    f"{_SELECTION}test_difficulty.py::test_auto_represents_features_too_where_there_are_any",
)

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
        f"{_INFLUENCE}test_cost.py::test_as_many_queries_are_swept_at_once_as_fit",
        _AGREE,
        f"{_INFLUENCE}test_projected.py::test_directions_in_chunks_are_the_directions_at_once",
    ),
    "hf_prune/influence/sketch/count_sketch.py": (f"{_INFLUENCE}test_count_sketch.py",),
    "hf_prune/influence/sketch/layer_rules.py": ("tests/testing/test_layer_rule.py",),
    "hf_prune/influence/sketch/logit_factors.py": (f"{_INFLUENCE}test_logit_factors.py",),
    "hf_prune/influence/sketch/per_example_vjp.py": (
        *(f"{_HOOKS}[{name}]" for name in ("mlp", "vit", "gpt2", "resnet")),
        _VMAP,
        f"{_INFLUENCE}test_projected.py::test_half_precision_gives_what_autograd_gives_in_it[mlp]",
    ),
    "hf_prune/influence/sketch/forward_pass.py": (f"{_HOOKS}[mlp]", f"{_HOOKS}[vit]", _VMAP, *_SKETCHED),
    "hf_prune/influence/sketch/row_slopes.py": (
        f"{_ATTRIBUTION}test_queries.py::test_the_parts_of_a_rows_tokens_are_those_of_the_other_engine",
        f"{_ATTRIBUTION}test_queries.py::test_what_no_token_does_alone_is_its_share_of_the_denominator",
    ),
    "hf_prune/influence/sketch/to*.py": (_TOKENS, *_SKETCHED),
    "hf_prune/influence/sketch/window_pass.py": (
        f"{_INFLUENCE}test_faults.py::test_room_is_looked_for_before_sketching",
        *_SKETCHED,
        f"{_INFLUENCE}test_language_model_memory.py::test_scores_do_not_depend_on_rows_and_tokens_at_once",
    ),
    "hf_prune/influence/sketch/s[ct]*.py": (f"{_INFLUENCE}test_scales_and_store.py", _AGREE),
    "hf_prune/influence/sketch/*.py": _SKETCHED,
    "hf_prune/selection/methods/*.py": _METHODS,
    "hf_prune/selection/certificate.py": (f"{_SELECTION}test_certificate.py",),
    "hf_prune/selection/evidence.py": ("tests/verification/test_probe.py",),
    "hf_prune/selection/buckets.py": (*_TINY, f"{_SELECTION}test_buckets.py"),
    "hf_prune/selection/difficulty.py": (*_TINY, f"{_SELECTION}test_difficulty.py"),
    **{f"hf_prune/selection/{name}.py": (*_TINY, f"{_SELECTION}test_select.py") for name in _BY_TRYING_ALL},
}
"""Files by pattern, the first that fits, and their tests in the order in which they run."""

QUICK = {"hf_prune/influence/clipping.py": 4, "hf_prune/optimizers/sgd.py": 4}
"""Mutants of each file in the quick profile."""

_EITHER = "both ways give the same, one is faster"
_UNUSED = "what it changes is not read"
_AT_ONCE = "how much is worked on at a time"
_SIGNS = "signs are their own inverses"
EQUIVALENT = {
    "hf_prune/influence/clipping.py::leave_one_out: 1 -> 2": _UNUSED,
    "hf_prune/influence/dense/curvature.py::factored_products: budget // (2 * theta.numel() * theta.element_size()) "
    "-> budget * (2 * theta.numel() * theta.element_size())": _AT_ONCE,
    "hf_prune/influence/dense/curvature.py::gauss_newton_products: 2 -> 3": _UNUSED,
    "hf_prune/influence/dense/curvature.py::step_work: objective.width(batch) <= FACTORED_LOGITS -> "
    "not objective.width(batch) <= FACTORED_LOGITS": _EITHER,
    "hf_prune/influence/dense/curvature.py::step_work: objective.width(batch) <= FACTORED_LOGITS -> "
    "objective.width(batch) < FACTORED_LOGITS": _EITHER,
    "hf_prune/influence/queries.py::output_queries: 2 -> 3": _UNUSED,
    "hf_prune/influence/queries.py::output_queries: 16 -> 17": _AT_ONCE,
    "hf_prune/influence/sketch/count_sketch.py::CountSketch.__init__: device.type == 'cpu' -> "
    "device.type != 'cpu'": _AT_ONCE,
    "hf_prune/influence/sketch/count_sketch.py::CountSketch.fold: 1 -> 2 (#3)": _UNUSED,
    "hf_prune/influence/sketch/count_sketch.py::CountSketch.fold: parts.dtype == torch.float32 -> "
    "parts.dtype != torch.float32": _EITHER,
    "hf_prune/influence/sketch/count_sketch.py::CountSketch.sketch: part * out[:, None] -> "
    "part / out[:, None]": _SIGNS,
    "hf_prune/influence/sketch/count_sketch.py::CountSketch.sketch: part * out[:, None] * inner -> "
    "part * out[:, None] / inner": _SIGNS,
    "hf_prune/influence/sketch/count_sketch.py::_buckets: buckets < size -> buckets <= size": "the size is the most",
    "hf_prune/influence/sketch/count_sketch.py::_buckets: 1 -> 2 (#2)": "the divisors of odd numbers are odd",
    "hf_prune/influence/sketch/count_sketch.py::fast_bfloat16: False -> True": "only a GPU tells",
    "hf_prune/influence/sketch/count_sketch.py::fast_bfloat16: device.type == 'cuda' -> device.type != 'cuda'": (
        "only a GPU tells"
    ),
    "hf_prune/influence/sketch/layer_rules.py::GradientSketcher.add_rows: rows * out[ids][..., None] -> "
    "rows / out[ids][..., None]": _SIGNS,
    "hf_prune/influence/sketch/logit_factors.py::logit_factors: 0 -> 1": _UNUSED,
    "hf_prune/influence/sketch/logit_factors.py::logit_factors: 0 -> 1 (#2)": _UNUSED,
    "hf_prune/influence/sketch/logit_factors.py::logit_factors: flat - along[:, None] * first -> "
    "along[:, None] * first - flat": "only its length is read",
    "hf_prune/influence/sketch/logit_factors.py::logit_factors: kept >= (1 - PARALLEL) * total -> "
    "kept > (1 - PARALLEL) * total": "the border is at no number that occurs",
    "hf_prune/influence/sketch/per_example_vjp.py::PerExampleVjp._agrees: (found - whole).norm() <= limit -> "
    "(found - whole).norm() < limit": "the border is at no number that occurs",
    "hf_prune/influence/sketch/query_sketches.py::_OutputQueries._summed: 0 -> 1": "all draws have one shape",
    "hf_prune/influence/sketch/scales.py::GradientScales.at: final + 1e-30 -> final - 1e-30": (
        "a weight that counts only where all are so small, and then both signs give the same mean"
    ),
    "hf_prune/selection/annealing.py::anneal: length / 10 -> length * 10": "how fast it finds what it finds",
    "hf_prune/selection/difficulty.py::cost_of: (values - values.min()) / (span if span > 0 else 1.0) + 1e-06 * "
    "rng.random(len(values)) -> (values - values.min()) / (span if span > 0 else 1.0) - 1e-06 * "
    "rng.random(len(values))": "ties are broken at random either way",
    "hf_prune/selection/distances.py::one_by_one: problem.n - dropped -> problem.n + dropped": "how long a bar is",
    "hf_prune/selection/pooling.py::pooled: 1 -> 2": _UNUSED,
}
"""Survivors that no test can notice, and why."""
