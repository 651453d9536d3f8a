"""What the documents say of what was measured, with `{}` for each number, and the numbers in the result files."""

from __future__ import annotations

import numpy as np
from scipy import stats

from tests.attribution.facts import facts
from tests.docs.figures import best, constant, one, result
from tests.docs.settings import ARCHITECTURE, COST, DEFAULT_COST, LEFT_OUT, RELIABILITY, Said, full
from tests.docs.test_figures import LANGUAGE, LIMITS, NOISE, PAPER, RATES, README, SELECTION, WHICH, gains

DIFFERENTIATED, HELD = "AdamW-influence (dattri-llm)", "AdamW-influence with v frozen (dattri-llm)"


def summed(name: str, *keys: str, scale: float = 1.0) -> list[float]:
    return [scale * result(name)["summary"][key] for key in keys]


def extremes(name: str, value: str, scale: float = 1.0, **keys: object) -> list[float]:
    rows = [row for row in result(name)["rows"] if all(row.get(key) == wanted for key, wanted in keys.items())]
    found = [scale * row[value] for row in rows]
    return [min(found), max(found)]


def margin(run: str, question: str, method: str = "hf_prune (visits)") -> float:
    return one("fidelity", "margin_r", run=run, question=question, method=method)


SEGMENTS = {name: constant("benchmarks/segments.py", name) for name in ("EPOCHS", "WINDOW", "SNAPSHOTS")}


def without_a_row(run: str, *kinds: str, mode: str = "visits") -> list[float]:
    """Each figure of a run with Adam's second moment followed, and held."""
    moments = ("followed", "held")
    of = {"run": run, "mode": mode}
    return [one("leave_one_out", kind, **of, **{"second moment": moment}) for kind in kinds for moment in moments]


def relative_errors(run: str, left_out: str) -> list[float]:
    """Of another library's sweep over a whole run, with the second moment held, and differentiated."""
    of = {"run": run, "question": f"{left_out}, whole run"}
    return [one("fidelity", "margin_error", method=way, **of) for way in (HELD, DIFFERENTIATED)]


def paired(mixture: str, rival: str) -> list[float]:
    """By how much `target` is ahead of a rival, and half of the 95 % interval, over seeds."""
    seeds = {
        row["method"]: np.array(row["precision_seeds"])
        for row in result("targets")["rows"]
        if row["mixture"] == mixture
    }
    ahead = seeds["target"] - seeds[rival]
    return [ahead.mean(), stats.t.ppf(0.975, len(ahead) - 1) * ahead.std(ddof=1) / len(ahead) ** 0.5]


def over_default(*tasks: str) -> list[float]:
    return [one("probes", "over_default", cost=8.0, task=task) for task in tasks]


def prediction(*names: str, kind: str = "spearman", end: str = "") -> list[float]:
    return [result("gap")["summary"][f"gap_{kind}_{name}{end}"] for name in names]


def of_seeds(method: str, value: str, scale: float = 1.0) -> list[float]:
    return [scale * one("language", value, method=method, part="queries", seed=seed) for seed in range(3)]


FACTS, TELL = facts()
SINGLE = {"left out": "single rows"}
OURS_HELD = [
    abs(margin("mlp/adamw", question, "hf_prune, fisher") - margin("mlp/adamw", question, HELD))
    for question in ("leave-one-out", "groups of 5%", "groups of 20%")
]
LARGE = constant("benchmarks/language_memory.py", "LARGE")
(DIGITS,) = full("fidelity", "rows")
PLACES = sum(summed("curves", *(f"held_out_random_{kind}" for kind in ("wins", "ties", "losses"))))
AHEAD = np.subtract(of_seeds("attribute", "lds_held_out"), of_seeds("less", "lds_held_out"))
SPLITS = {data: [f"{data}{split}" for split in ("", "_split_1", "_split_2")] for data in ("digits", "reviews")}
NEW = [name for data in SPLITS for name in SPLITS[data][1:]]
ON_OUTPUTS = {"run": "adamw", "space": "outputs"}
ON_PARAMETERS = ("sgd", "momentum", "adamw")
GAIN = ("gain", "gain_interval")
WITHOUT_IMBALANCED = [row["over_default"] for row in result("probes")["rows"] if row["cost"] == 8.0]
WITHOUT_IMBALANCED.remove(max(WITHOUT_IMBALANCED))
LEARNED = [row["gain"] for row in result("rules")["rows"]]
MEASURED: tuple[Said, ...] = (
    (
        README,
        "on {} rows of facts, three of which ({}, {} and {}) taught this one",
        [len(FACTS), *TELL],
    ),
    (
        ARCHITECTURE,
        "correlates {} instead of {} with really leaving them out, with an error of {} instead of {}",
        without_a_row("GELU, 16 steps, whole run", "loss r", "loss error"),
    ),
    (
        ARCHITECTURE,
        "it changes little (errors {} and {})",
        without_a_row("GELU, 192 steps, half", "loss error"),
    ),
    (ARCHITECTURE, "correlations differ by {} at most", [max(OURS_HELD)]),
    (
        ARCHITECTURE,
        "groups of {} and {} % of the MLP's rows have the correlations {} and {}, differentiated {} and {}",
        [5, 20, *(margin("mlp/adamw", f"groups of {g}%", way) for way in (HELD, DIFFERENTIATED) for g in (5, 20))],
    ),
    (
        ARCHITECTURE,
        "on the MLP from {} to {} for rows and from {} to {} for groups of {} %, on the ViT from {} to {} and from "
        "{} to {}",
        [
            *relative_errors("mlp/adamw", "leave-one-out"),
            *relative_errors("mlp/adamw", "groups of 20%"),
            20,
            *relative_errors("vit/adamw", "leave-one-out"),
            *relative_errors("vit/adamw", "groups of 20%"),
        ],
    ),
    (
        ARCHITECTURE,
        "rises with it on the MLP ({} to {}) and falls on the ViT ({} to {})",
        [
            margin(run, "groups of 20%, whole run", way)
            for run in ("mlp/adamw", "vit/adamw")
            for way in (HELD, DIFFERENTIATED)
        ],
    ),
    (
        ARCHITECTURE,
        "relative error of single rows' margins is {} without it and {} with it",
        [
            one("choices", "margin_error", run="vit/adamw", choice="window", value=0.5, curvature=c, **SINGLE)
            for c in ("gauss-newton, factor 1", "gauss-newton")
        ],
    ),
    (
        RELIABILITY,
        "had r {}, error {} |",
        without_a_row("GELU, 16 steps, whole run", "loss r", "loss error")[1::2],
    ),
    (
        RELIABILITY,
        "r {}, error {} with `code` (`code` {} and {}, from {} and {}:",
        [
            *without_a_row("GELU, 16 steps, whole run", "loss r", "loss error")[::2],
            *without_a_row("GELU, 16 steps, whole run", "loss r", "loss error", mode="expected")[::2],
            *without_a_row("GELU, 16 steps, whole run", "loss r", "loss error", mode="expected")[1::2],
        ],
    ),
    (
        RELIABILITY,
        "correlated {} with really leaving {} rows out, where the same with GELU has {}",
        [
            without_a_row("ReLU, 192 steps, half", "shift r")[1],
            *LEFT_OUT,
            without_a_row("GELU, 192 steps, half", "shift r")[1],
        ],
    ),
    (
        RELIABILITY,
        "relative error of the held-out loss was {}, with GELU {} (",
        [without_a_row(f"{unit}, 192 steps, half", "loss error")[1] for unit in ("ReLU", "GELU")],
    ),
    (
        README,
        "at the cost of {} trainings that gained {} ± {} points more",
        summed("probes", "probe_8_spent", "probe_8_over_default", "probe_8_over_default_interval"),
    ),
    (
        README,
        "half of {} reviews is {} ± {} points",
        [*full("finetune", "train"), *(100 * one("finetune", k, rate=0.5, method="influence") for k in GAIN)],
    ),
    (
        LIMITS,
        "AdamW gives {} exact, {} Gauss-Newton (the default), {} Fisher and {} without",
        [one("fidelity", "pearson", **ON_OUTPUTS, curvature=c) for c in ("exact", "gauss-newton", "fisher", "none")],
    ),
    (
        LIMITS,
        "without single rows {}, without groups {}; with dropout {} and {}",
        summed("minilm", "loo_minilm", "groups_minilm", "loo_minilm_dropout", "groups_minilm_dropout"),
    ),
    (
        LIMITS,
        "took {} times as long on a small ViT and {} on MiniLM",
        summed("overhead", "overhead_vit", "overhead_minilm"),
    ),
    (LIMITS, "single pairs {} to {}", extremes("overhead", "ratio")),
    (
        LIMITS,
        "it took {} times as long under DDP and {} under FSDP2 (medians of {} pairs of {} steps",
        [
            *summed("overhead_processes", "overhead_ddp_seconds", "overhead_fsdp2_seconds"),
            constant("benchmarks/overhead.py", "PROFILES")["processes"]["pairs"],
            result("overhead_processes")["rows"][0]["steps"],
        ],
    ),
    (
        LIMITS,
        "{} classes takes {} to {} of its training's growth of memory",
        [LARGE, *extremes("language_memory", "memory", vocabulary=LARGE)],
    ),
    (LIMITS, "and {} to {} of its processor time", extremes("language_memory", "cpu", vocabulary=LARGE)),
    (
        LIMITS,
        "({} to {} ms of one core a row and at most {} MiB",
        [
            *sorted(1000 * row["cpu_s"] / row["rows"] for row in result("pool")["rows"])[::2],
            *summed("pool", "most_peak_mib"),
        ],
    ),
    (LIMITS, "makes some {} s for a hundred thousand", [10 * round(summed("pool", "100k_cpu_s")[0] / 10)]),
    (
        README,
        "of {} places (task, rate, budget) {} are wins",
        [PLACES, *summed("curves", "held_out_random_wins")],
    ),
    (
        SELECTION,
        "Of these {} places {} are wins over random rows, {} ties",
        [PLACES, *summed("curves", "held_out_random_wins", "held_out_random_ties")],
    ),
    (
        SELECTION,
        "tied within the interval at {} places, wins at {}, and loses at {}",
        summed("curves", "held_out_ties", "held_out_wins", "held_out_losses"),
    ),
    (SELECTION, "comes from one task: {} points", over_default("mnist-imbalanced")),
    (
        SELECTION,
        "is {}: {} and {} on Fashion-MNIST and on genres, {} to {} on film reviews and on image segments; "
        "the lowest is {}",
        [
            np.mean(WITHOUT_IMBALANCED),
            *over_default("fashion", "genres", "reviews", "segment"),
            min(WITHOUT_IMBALANCED),
        ],
    ),
    (
        SELECTION,
        "(genres, tweets, documents, sentences, Fashion-MNIST) gain {} at `code` {}.",
        [np.mean(over_default("genres", "tweets", "documents", "sentences", "fashion")), *DEFAULT_COST],
    ),
    (SELECTION, "All rows give {}.", summed("finetune", "full_0", scale=100)),
    (
        SELECTION,
        "came to {} ± {} and {} ± {}",
        [100 * one("finetune", k, rate=rate, method="probed") for rate in (0.5, 0.7) for k in GAIN],
    ),
    (
        SELECTION,
        "interval of an accuracy is {} to {}:",
        [
            100 * f([row["interval"] for row in result("noise")["rows"] if row["method"] in NOISE.values()])
            for f in (min, max)
        ],
    ),
    (
        SELECTION,
        "believes wrong by itself, {} and {} %",
        [100 * one("noise", "found", method="harmful", noise=noise) / DIGITS for noise in (0.1, 0.3)],
    ),
    (
        SELECTION,
        "over {} places, the method that it picks gains between {} and {} points",
        [*summed("rules", "places"), min(LEARNED), max(LEARNED)],
    ),
    (SELECTION, "in hindsight gains {}", [result("rules")["rows"][0]["best"]]),
    (
        SELECTION,
        "difference: by {} ± {} over `code`, {} ± {} over single effects, {} ± {} over BM25, {} ± {} over TF-IDF and "
        "{} ± {} over `code`",
        [v for rival in ("less", "sorted", "bm25", "tf-idf", "rds") for v in paired("dialogues", rival)],
    ),
    (
        SELECTION,
        "for every seed, {} ± {} and {} ± {}, and tied",
        [v for rival in ("less", "rds") for v in paired("science", rival)],
    ),
    (
        SELECTION,
        "on dialogues: {} for `code` and for single effects, {} for `code`, {} for BM25, {} for `code`, {} for lowest "
        "perplexity, {} for `code`, {} for random rows, and {} where",
        [
            one("targets", "loss", mixture="dialogues", method=m)
            for m in ("target", "less", "bm25", "rds", "perplexity", "length", "random", "of the task")
        ],
    ),
    (WHICH, "change the outputs by {} of a group's effect", summed("minilm", "other_masks")),
    (
        WHICH,
        "the standard error of ours is {} on the MLP and {} on the ViT",
        [
            one("fidelity", "lds_se", question="LDS", method="hf_prune (expected)", run=run)
            for run in ("mlp/adamw", "vit/adamw")
        ],
    ),
    (
        WHICH,
        "share a label reaches {}. TracIn of the last layer has {} too",
        [best("minilm", "lds", name, question="LDS") for name in ("label alone", "TracInCP")],
    ),
    (
        WHICH,
        "takes that away: {} by default and {} with `code`, where first-order sums have {}",
        [
            one("minilm", "lds", question="LDS", method=m)
            for m in ("hf_prune (expected)", "hf_prune, whole run", "hf_prune, whole run, none")
        ],
    ),
    (
        WHICH,
        "took {} s of the processor against {} s of the recorded run, {} of it, in full precision",
        [result("scoring_time")["rows"][0][k] for k in ("score_s", "train_s", "ratio")],
    ),
    (
        WHICH,
        "with up to {} tokens it took {} of it, and with {} tokens and a dropout of {} it took {}",
        [
            *(result("scoring_time")["rows"][1][k] for k in ("tokens", "ratio")),
            *(result("scoring_time")["rows"][2][k] for k in ("tokens", "dropout", "ratio")),
        ],
    ),
    (
        WHICH,
        "keeps most of the LDS ({}, {}, {})",
        [
            one("fidelity", "lds_1_run", question="LDS", method="hf_prune, whole run, fisher", run=run)
            for run in ("mlp/adamw", "mlp/sgd", "vit/adamw")
        ],
    ),
    (
        WHICH,
        "exact curvature gives {}, with",
        [margin("vit from scratch/adamw", "leave-one-out, 1 snapshots an epoch", "hf_prune, exact")],
    ),
    (
        WHICH,
        "with eight snapshots an epoch {}.",
        [margin("vit from scratch/adamw", "leave-one-out, 8 snapshots an epoch", "hf_prune, exact")],
    ),
    (
        WHICH,
        "the correlations are {}, {} and {} (MLP AdamW, MLP SGD, ViT)",
        [margin(run, "leave-one-out, whole run") for run in ("mlp/adamw", "mlp/sgd", "vit/adamw")],
    ),
    (WHICH, "what was observed is {} on digits and {} on reviews", prediction("digits", "reviews")),
    (WHICH, "and {} and {} (digits), {} and {} (reviews)", prediction(*NEW)),
    (
        WHICH,
        "fails on digits ({} to {}; reviews {} to {})",
        [f(prediction(*names, end="_epochs")) for names in SPLITS.values() for f in (min, max)],
    ),
    (
        WHICH,
        "within a rate {} to {} on digits, {} to {} on reviews",
        [
            f(prediction(*names, kind="spearman_within_rates", end="_epochs"))
            for names in SPLITS.values()
            for f in (min, max)
        ],
    ),
    (
        WHICH,
        "(R2 {} to {};",
        [f(prediction(*(n for names in SPLITS.values() for n in names), kind="r2")) for f in (min, max)],
    ),
    (
        LANGUAGE,
        "the default {} / {}, random rows {} / {}, the longest {} / {}, those of lowest perplexity {} / {}, of "
        "highest {} / {}.",
        summed(
            "language",
            *(
                f"general_{kept}_{share}_loss"
                for kept in ("default", "random", "longest", "lowest perplexity", "highest perplexity")
                for share in (0.5, 0.3)
            ),
        ),
    ),
    (LANGUAGE, "above LESS by {} to {} for each seed", [f(AHEAD) for f in (min, max)]),
    (
        LANGUAGE,
        "({}, {}, {} against {}, {}, {})",
        [v for method in ("attribute", "less") for v in of_seeds(method, "qld_held_out", 1000)],
    ),
    (
        PAPER,
        "exact curvature: SGD {}, momentum {}, AdamW with warm-up and clipping {}",
        summed("fidelity", *(f"{run}_exact" for run in ON_PARAMETERS)),
    ),
    (
        PAPER,
        "first-order methods do it, {}, {} and {}.",
        summed("fidelity", *(f"{run}_none" for run in ON_PARAMETERS)),
    ),
    (
        PAPER,
        "to {} for single rows, {} on a small ViT",
        [margin(run, "leave-one-out, whole run") for run in ("mlp/adamw", "vit/adamw")],
    ),
    (
        PAPER,
        "correlation {} with really leaving {} rows out by each row's own visits, {} in expectation",
        [
            *summed("leave_one_out", "GELU, 16 steps, whole run, visits, followed"),
            *LEFT_OUT,
            *summed("leave_one_out", "GELU, 16 steps, whole run, expected, followed"),
        ],
    ),
    (
        PAPER,
        "Llama with LoRA {} for rows, {} for groups",
        summed("language", "fidelity_LoRA_rows_loss_r", "fidelity_LoRA_groups_loss_r"),
    ),
    (
        PAPER,
        "precision {} against {} with {} % wrong",
        [*(one("noise", "precision", method=m, noise=0.1) for m in ("held-out loss", "loss")), 100 * 0.1],
    ),
    (PAPER, "held-out loss: {} on digits, {} on reviews", prediction("digits", "reviews")),
    (PAPER, "not looked at before: {} and {}, {} and {}.", prediction(*NEW)),
    (
        COST,
        "visited {} times in the window, the sketches of two classes would take {} GB; with {} snapshots an epoch {} "
        "GB are there at a time, {} of them",
        [
            SEGMENTS["EPOCHS"] * SEGMENTS["WINDOW"],
            *summed("segments", "1m_gb"),
            SEGMENTS["SNAPSHOTS"],
            *summed("segments", "1m_by_segments_gb", "1m_state_gb"),
        ],
    ),
    (COST, "extrapolated from {} visits", [max(row["visits"] for row in result("segments")["rows"])]),
    (
        COST,
        "with the visits' power {} and processor time with their power {}; by segments these are {} and {})",
        summed(
            "segments",
            "peak_gb_exponent",
            "cpu_s_exponent",
            "peak_gb_by_segments_exponent",
            "cpu_s_by_segments_exponent",
        ),
    ),
    (COST, "and took {} times the processor time", summed("segments", "cpu_s_ratio")),
    (PAPER, "fewer steps, it is {} on digits", prediction("digits", end="_epochs")),
    (
        PAPER,
        "selected in {} CPU seconds and {} GiB, ten million in {} and {} (wall",
        summed("scale", "cpu_seconds_1m", "peak_gb_1m", "cpu_seconds_10m", "peak_gb_10m"),
    ),
    (
        PAPER,
        "What {} to a million rows took",
        [constant("benchmarks/scale.py", "PROFILES")["full"]["fit"]],
    ),
    (
        PAPER,
        "to take {} (95 % interval {} to {}) CPU seconds and {} GiB ({} to {})",
        [
            value
            for name in ("cpu_seconds", "peak_gb")
            for value in (
                *summed("scale", f"{name}_10m_extrapolated"),
                *result("scale")["summary"][f"{name}_10m_interval"],
            )
        ],
    ),
    (
        PAPER,
        "is {} times that of the undivided problem in the mean, {} at worst, and {} and {} for the linear program",
        summed("scale", "bucket_ratio", "bucket_ratio_worst", "bucket_ratio_none", "bucket_ratio_worst_none"),
    ),
    (
        PAPER,
        "is {} times that of random subsets at {} rows, {} times at a million, and {} times at ten million",
        [
            *summed("scale", "audit_ratio_10k"),
            10_000,
            *summed("scale", "audit_ratio_1m", "audit_ratio_10m"),
        ],
    ),
    (
        PAPER,
        "the default gains {} in the mean over rates and budgets; the next are herding on influence with {} and "
        "herding on features with {}; the ICLR method has {}, EL2N {}",
        summed(
            "curves",
            "gain_influence",
            "gain_herding",
            "gain_features-herding",
            "gain_iclr2023",
            "gain_el2n",
            scale=100,
        ),
    ),
    (
        PAPER,
        "of {} places (task, rate, budget) {} are wins over random rows beyond the 95 % interval, {} are ties",
        [PLACES, *summed("curves", "held_out_random_wins", "held_out_random_ties")],
    ),
    (
        PAPER,
        "the default loses at {} places, ties at {} and wins at {}",
        summed("curves", "held_out_losses", "held_out_ties", "held_out_wins"),
    ),
    (
        PAPER,
        "At {} % pruned the ICLR method is as good ({} against {} for equal epochs)",
        [100 * RATES[0], gains("iclr2023", "epochs")[0], gains("influence", "epochs")[0]],
    ),
    (
        PAPER,
        "half of the rows are {} ± {} points above random ones, and {} % of them {} ± {}",
        [
            *(100 * one("finetune", k, rate=0.5, method="influence") for k in GAIN),
            100 * (1 - 0.7),
            *(100 * one("finetune", k, rate=0.7, method="influence") for k in GAIN),
        ],
    ),
    (PAPER, "{} % fewer CPU seconds", summed("iclr2023", "seconds_saved_published", scale=100)),
    (PAPER, "and {} % less work in products", summed("iclr2023", "product_work_saved_published", scale=100)),
    (PAPER, "takes {} times fewer seconds than ours", [1 - summed("iclr2023", "seconds_saved_lean")[0]]),
    (
        PAPER,
        "Accuracy beside it: {}, {} and {} points at {}, {} and {} % pruned",
        summed("iclr2023", *(f"accuracy_gain_lean_{r}" for r in RATES[:3]), scale=100) + [100 * r for r in RATES[:3]],
    ),
    (
        PAPER,
        "beside the published one {}, {} and {}",
        summed("iclr2023", *(f"accuracy_gain_published_{r}" for r in RATES[:3]), scale=100),
    ),
)
"""Each with the document that says it."""
