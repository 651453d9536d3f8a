"""Every figure in the tables of the documents is one of a result file, rounded as it is shown."""

from __future__ import annotations

import re

from tests.docs.figures import agree, best, number, numbers, one, result, table, written

README, PAPER, LIMITS = "README.md", "docs/paper.md", "docs/limits.md"
SELECTION, WHICH, LANGUAGE = "docs/SELECTION.md", "docs/WHICH_METHOD.md", "docs/LANGUAGE.md"
RATES, BUDGETS = (0.3, 0.5, 0.7, 0.9), ("epochs", "steps")
METHODS = {
    "**hf_prune**": "influence",
    "herding on influence": "herding",
    "herding on features": "features-herding",
    "CCS": "ccs",
    "ICLR 2023 method": "iclr2023",
    "EL2N": "el2n",
}
TASKS = (
    *("digits", "digits-short", "digits-noise", "mnist", "mnist-long", "mnist-imbalanced", "fashion", "fashion-long"),
    *("cifar10", "segment", "phishing", "banana", "diamonds", "reviews", "reviews-long", "tweets", "sentences"),
    *("genres", "documents"),
)


def check(cells: list[str], *values: list[float]) -> None:
    """Cells that are empty show nothing."""
    for cell, wanted in zip(cells, values, strict=True):
        assert agree(cell.replace(" / ", " ").replace("±", " "), wanted), (cell, wanted)


def gains(method: str, budget: str) -> list[float]:
    return [100 * one("curves", "gain", method=method, rate=rate, budget=budget) for rate in RATES]


def test_means_over_tasks():
    header = "| | equal epochs, pruned 30 / 50 / 70 / 90 % | equal steps, 30 / 50 / 70 / 90 % |"
    for name, *cells in table(README, header):
        check(cells, *(gains(METHODS.get(name, name), budget) for budget in BUDGETS))
    rows = table(SELECTION, "| method | mean | equal epochs: 30 / 50 / 70 / 90 % | equal steps: 30 / 50 / 70 / 90 % |")
    assert {name for name, *_ in rows} == {row["method"] for row in result("curves")["rows"]}
    for name, *cells in rows:
        mean = 100 * result("curves")["summary"][f"gain_{name}"]
        check(cells, [mean], *(gains(name, budget) for budget in BUDGETS))


SIZES = {
    "digits": ("study_tasks", "split(rest, [{}, 200, 150], seed)"),
    "mnist": ("recipes", 'mnist = ("mnist", ({},'),
    "reviews": ("study_tasks", "def reviews_task(seed: int = 0, rows: int = {})"),
    "cifar10": ("study_tasks", "def cifar_task(file: Path, rows: int = {},"),
}
"""Where the number of a task's training rows is written: of others in their recipe."""


def test_each_task():
    header = "| task | all rows | equal epochs: 30 / 50 / 70 / 90 % | equal steps: 30 / 50 / 70 / 90 % |"
    for task, (label, full, *cells) in zip(TASKS, table(SELECTION, header), strict=True):
        name, size = f"curves-{task}", re.search(r"([\d,]+) rows", label)
        file, code = SIZES.get(task, ("recipes", f'of("{task}", "{task}", ({{}},'))
        assert not size or written(f"benchmarks/{file}.py", code) == [number(size[1])], label
        check([full], [100 * one(name, "accuracy", method="full")])
        for cell, budget in zip(cells, BUDGETS, strict=True):
            if cell != "not run":
                of = {"budget": budget}
                here = [one(name, "accuracy", method="influence", rate=rate, **of) for rate in RATES]
                random = [one(name, "accuracy", method="random", rate=rate, **of) for rate in RATES]
                check([cell], [100 * (a - b) for a, b in zip(here, random, strict=True)])
                kinds = ("behind", "behind_interval")
                beyond = [[one(name, kind, method="random", rate=rate, **of) for kind in kinds] for rate in RATES]
                marked = [gain.endswith("\\*") for gain in cell.split(" / ")]
                assert marked == [abs(gain) > interval for gain, interval in beyond], (task, cell)


def test_probes():
    header = (
        "| `cost` | really spent | over the default | over random rows "
        "| behind the best rival at each place, chosen on the test rows |"
    )
    rows = table(SELECTION, header)
    summary = result("probes")["summary"]
    for cost, *cells in rows:
        name = f"probe_{numbers(cost)[0][0]:.0f}"
        pairs = ("over_default", "over_random", "behind_best")
        both = [[summary[f"{name}_{part}"], summary[f"{name}_{part}_interval"]] for part in pairs]
        check(cells, [summary[f"{name}_spent"]], *both)


def test_fine_tuning():
    header = "| pruned | random | default | stratified | CCS | herding on influence | AUM | EL2N |"
    for pruned, random, *cells in table(SELECTION, header):
        rate = numbers(pruned)[0][0] / 100
        check([random], [100 * one("finetune", "accuracy", rate=rate, method="random")])
        for cell, method in zip(cells, ("influence", "stratified", "ccs", "herding", "aum", "el2n"), strict=True):
            values = [100 * one("finetune", kind, rate=rate, method=method) for kind in ("gain", "gain_interval")]
            check([cell], values)


NOISE = {
    '`harmful="drop"`': "harmful",
    "own loss at the end": "loss",
    "cleanlab (confident learning), the same run": "cleanlab, this run",
    "cleanlab, 5 folds": "cleanlab, 5 folds",
    "predicted held-out loss alone": "held-out loss",
    "none of the wrong ones": "only right labels",
    "all rows": "all rows",
}


def test_wrong_labels():
    for name, precision, accuracy in table(SELECTION, "| | precision at 10 / 30 % wrong | accuracy |"):
        method = NOISE[name]
        at_rate = "accuracy" if method in ("only right labels", "all rows") else "accuracy_at_noise_rate"
        check([accuracy], [100 * one("noise", at_rate, method=method, noise=noise) for noise in (0.1, 0.3)])
        if precision:
            check([precision], [one("noise", "precision", method=method, noise=noise) for noise in (0.1, 0.3)])


TARGETS = {
    "effects of single rows, sorted": "sorted",
    "held-out rows taking turns": "turns",
    "BM25": "bm25",
    "TF-IDF, nearest to the centre": "tf-idf",
    "lowest perplexity before training": "perplexity",
    "the default": "influence",
}


def test_rows_for_a_task():
    header = "| | dialogues among film reviews | science among adventure | government among news |"
    for name, *cells in table(SELECTION, header):
        of = {"method": TARGETS.get(name, name.strip("`"))}
        for cell, mixture in zip(cells, ("dialogues", "science", "government"), strict=True):
            kinds = ("precision", "precision_interval")
            check([cell], [one("targets", kind, mixture=mixture, **of) for kind in kinds])


def test_rows_for_a_task_by_a_real_checkpoint():
    for name, precision, loss in table(SELECTION, "| SmolLM2-135M | precision | loss |"):
        of = {"method": TARGETS.get(name, name.strip("`"))}
        check([precision], [one("targets-pretrained", kind, **of) for kind in ("precision", "precision_interval")])
        check([loss], [one("targets-pretrained", "loss", **of)])


def test_the_demo():
    """What `hf-prune demo --json` printed: means in full, spreads and intervals as they stood in its table."""
    for pruned, *cells, difference in table(README, "| rows pruned | pruned by hf_prune | random | pruned - random |"):
        rate = numbers(pruned)[0][0] / 100
        for cell, arm in zip(cells, ("pruned" if rate else "full", "random"), strict=True):
            if cell:
                of = {"rate": rate, "arm": arm}
                check([cell], [100 * one("demo", "accuracy", **of), one("demo", "sd_points", **of)])
        if difference:
            (row,) = (row for row in result("demo")["rows"] if (row["rate"], row["arm"]) == (rate, "pruned"))
            check([difference], [row["over_random_points"], *row["interval_points"]])


RUNS = {"SGD, lr .3": "sgd", "momentum": "momentum", "AdamW with warm-up and clipping": "adamw"}


def test_faithfulness_to_leaving_rows_out():
    for name, *cells in table(LIMITS, "| run | exact | Gauss-Newton | Fisher | no curvature |"):
        for cell, curvature in zip(cells, ("exact", "gauss-newton", "fisher", "none"), strict=True):
            if cell:
                of = {"run": RUNS[name], "space": "parameters", "curvature": curvature}
                check([cell], [one("fidelity", "pearson", **of)])


OTHERS = {
    'hf_prune, `mode="visits"`': "hf_prune (visits)",
    'the same, `curvature="exact"`': "hf_prune, exact",
    'the same, `curvature="fisher"`': "hf_prune, fisher",
    'the same, `curvature="none"`': "hf_prune, none",
    "influence function (dattri), best of 4 dampings": "influence function (dattri)",
    "TRAK (traker), best of 4 ridges": "TRAK (traker)",
    "the same, second moment frozen": "AdamW-influence with v frozen (dattri-llm)",
    "the same without projection (dattri-llm)": "DVEmb (dattri-llm)",
    "gradient dot products": "gradient dot product (captum)",
    "hf_prune by default (`expected`, last half of the run)": "hf_prune (expected)",
    "hf_prune, `TrajectoryCallback(window=1.0)`": "hf_prune, whole run",
}
QUESTIONS = ("leave-one-out", "groups of 5%", "groups of 20%")


def fidelity(name: str, value: str, run: str, question: str) -> float:
    method = OTHERS.get(name, name)
    if (method, run) == ("hf_prune, exact", "mlp/sgd"):  # for SGD it is the default
        method = "hf_prune (visits)"
    if method in ("influence function (dattri)", "TRAK (traker)"):
        return best("fidelity", value, method, run=run, question=question)
    return one("fidelity", value, method=method, run=run, question=question)


def test_other_libraries_beside_leaving_rows_out():
    header = "| method | MLP AdamW: rows | 5 % | 20 % | MLP SGD: rows | 5 % | 20 % | ViT: rows | 5 % | 20 % |"
    places = [(run, question) for run in ("mlp/adamw", "mlp/sgd", "vit/adamw") for question in QUESTIONS]
    for name, *cells in table(WHICH, header):
        for cell, (run, question) in zip(cells, places, strict=True):
            if cell:
                check([cell], [fidelity(name, "margin_r", run, question)])


def test_other_libraries_on_half_of_the_run_and_on_the_whole():
    places = [(run, question) for run in ("mlp/adamw", "vit/adamw") for question in QUESTIONS]
    for name, part, *cells in table(WHICH, "| method | | MLP AdamW: rows | 5 % | 20 % | ViT: rows | 5 % | 20 % |"):
        for cell, (run, question) in zip(cells, places, strict=True):
            asked = question + {"half": "", "whole": ", whole run"}[part]
            check([cell], [fidelity(name, value, run, asked) for value in ("margin_r", "margin_error")])


def test_retrained_models():
    for name, *cells in table(WHICH, "| method | MLP AdamW | MLP SGD | ViT |"):
        for cell, run in zip(cells, ("mlp/adamw", "mlp/sgd", "vit/adamw"), strict=True):
            if cell and name.startswith("ceiling"):
                check([cell], [one("fidelity", "ceiling", run=run, question="LDS", method="EK-FAC (kronfluence)")])
            elif cell:
                check([cell], [fidelity(name, "lds_1_run", run, "LDS")])


def test_minilm():
    for dropout, curvature, *cells in table(
        WHICH, "| dropout | curvature | rows: logits | loss | groups: logits | loss |"
    ):
        run = "minilm/adamw" + {"0": "", ".1": ", dropout 0.1"}[dropout]
        of = {"run": run, "curvature": curvature.removesuffix(" (default)").lower()}
        places = [(what, left) for left in ("single rows", "groups") for what in ("logits", "loss")]
        for cell, (what, left) in zip(cells, places, strict=True):
            kinds = (f"{what} r", f"{what} error")
            check([cell], [one("minilm", kind, **of, **{"left out": left}) for kind in kinds])


MINILM = {
    'hf_prune, `mode="visits"` (LDS: by default)': "hf_prune, gauss-newton",
    "TRAK (traker), last parameters, best of 4 ridges": "TRAK (traker)",
    "TracInCPFast (captum), last layer": "TracInCP (captum)",
    "gradient dot products (captum), last layer": "gradient dot product (captum)",
}


def test_other_libraries_on_minilm():
    for name, *cells, seconds, lds in table(WHICH, "| method | rows | 5 % | 20 % | seconds | LDS |"):
        method, of = MINILM.get(name, name), {"run": "minilm/adamw"}
        for cell, question in zip(cells, ("rows", "5% groups", "20% groups"), strict=True):
            check([cell], [best("minilm", "margin_r", method, question=question, **of)])
        ours = method.startswith("hf_prune")
        check([lds], [best("minilm", "lds", "hf_prune (expected)" if ours else method, question="LDS", **of)])
        if seconds:
            check([seconds], [best("minilm", "seconds", method, question="rows", **of)])


CHOICES = {"`window`": "window", "`snapshots_per_epoch`": "snapshots an epoch", "`snapshot_dtype`": "snapshots in"}
CURVATURES = {"exact": "exact", "Gauss-Newton without its factor": "gauss-newton, factor 1", "Fisher": "fisher"}


def test_choices():
    kind = ""
    for choice, value, *cells in table(WHICH, "| choice | | MLP: rows | 20 % | ViT: rows | 20 % |"):
        kind, of = choice or kind, {"curvature": "gauss-newton"}
        if kind == "`curvature`":
            of = {"choice": "window", "value": 0.5, "curvature": CURVATURES.get(value, "none")}
        else:
            number = value.partition(",")[0].removesuffix(" (default)")
            of |= {"choice": CHOICES[kind], "value": number if number == "bfloat16" else float(number)}
            if value.endswith("exact"):
                of["curvature"] = "exact"
        places = [(run, left) for run in ("mlp/adamw", "vit/adamw") for left in ("single rows", "groups of 20%")]
        for cell, (run, left) in zip(cells, places, strict=True):
            values = [one("choices", v, run=run, **{"left out": left}, **of) for v in ("margin_r", "margin_error")]
            check([cell], values)


def test_number_of_queries():
    for name, *cells in table(WHICH, "| `directions` | MLP: rows | ViT: rows |"):
        for cell, run in zip(cells, ("mlp/adamw", "vit/adamw"), strict=True):
            of = {"choice": "k", "value": int(numbers(name)[0][0]), "left out": "single rows", "run": run}
            check([cell], [one("choices", value, **of) for value in ("length_rho", "length_error")])


COSTS = {
    "the recorded training run": "training run, recorded",
    "hf_prune by default": "hf_prune",
    'the same, `curvature="fisher"`': "hf_prune, fisher",
    "gradient dot products (captum; MiniLM: last layer)": "gradient dot product (captum)",
    "TracInCP (captum; MiniLM: last layer)": "TracInCP (captum)",
}


def test_costs():
    header = (
        "| | MLP, 1,097 digits (training 1.2 s) | ViT, 1,000 images (3.7 s) "
        "| MiniLM, 640 reviews of 32 tokens (68 s) |"
    )
    models = ("mlp", "vit", "minilm")
    seconds = [one("cost", "seconds", model=model, method="training run, recorded") for model in models]
    sizes = [written("benchmarks/cost.py", f"partial({model}, rows={{}}")[0] for model in models]
    assert [numbers(column)[0][0] for column in header.split("|")[2:5]] == sizes
    assert all(agree(text, [value]) for text, value in zip(("1.2", "3.7", "68"), seconds, strict=True))
    for name, *cells in table(WHICH, header):
        for cell, model in zip(cells, models, strict=True):
            if cell:
                of = {"model": model, "method": COSTS.get(name, name)}
                check([cell], [one("cost", "training_runs", **of), one("cost", "peak_mb", **of) / 1024])


def test_language_models_beside_leaving_rows_out():
    summary = result("language")["summary"]
    for name, *cells in table(LANGUAGE, "| | rows | groups of 5 % | groups of 20 % | all groups |"):
        what, _, how = name.partition(", ")
        adapter = {"first order": "LoRA, first order"}.get(how, how.removesuffix(" (NF4)"))
        of = "parameters" if what == "parameters" else "loss"
        for cell, left in zip(cells, ("rows", "groups_5", "groups_20", "groups"), strict=True):
            check([cell], [summary[f"fidelity_{adapter}_{left}_{of}_{kind}"] for kind in ("r", "error")])


ASKED = {
    "`attribute`": "attribute",
    '`attribute(mode="visits")`': "attribute, visits",
    '`attribute(curvature="none")`': "attribute, first order",
    "LESS": "less",
    "gradient dot": "gradient dot",
    "BM25": "bm25",
}


def test_attribution_beside_other_methods():
    summary = result("language")["summary"]
    for name, *cells in table(LANGUAGE, "| | LDS held-out | LDS facts | QLD held-out | QLD facts | hits |"):
        kinds = {"lds_held_out": 1, "lds_facts": 1, "qld_held_out": 1000, "qld_facts": 1000, "hits": 1}
        check(cells, *([scale * summary[f"queries_{ASKED[name]}_{kind}"]] for kind, scale in kinds.items()))
