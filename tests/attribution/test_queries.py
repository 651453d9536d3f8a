"""Queries in all their forms; many at once are the same as one by one, and both engines agree."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_prune import Attribution, UnsupportedError, add_influence, attribute
from hf_prune.attribution import api
from hf_prune.influence import engine
from hf_prune.model.token_head import vocabulary_of
from tests import toys
from tests.attribution.facts import PLANTED, TEMPLATE, Taught, fact, tokenizer
from tests.influence.runs import Run, distance, mlp
from tests.influence.test_removed_tokens import expected_run

MANY = [fact(*PLANTED, form) for form in range(3)] + [fact(f"place{i}", "animal", "animal1", i % 3) for i in range(4)]
PROMPT, COMPLETION = MANY[0]["prompt"], MANY[0]["completion"]


def ask(briefly: Taught, queries: Any, **settings: Any) -> np.ndarray:
    return attribute(briefly.path, queries, **({"engine": "projected"} | briefly.asking | settings)).influence


def same(found: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(found, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_many_queries_in_one_sweep_are_those_of_separate_ones(engine: str, briefly: Taught):
    together = ask(briefly, MANY, engine=engine)
    assert together.shape == (len(MANY), len(briefly.trainer.train_dataset))
    same(together, np.concatenate([ask(briefly, query, engine=engine) for query in MANY]))


@pytest.mark.parametrize("engine", ["dense", "projected"])
@pytest.mark.parametrize("tokens", [None, "query", "row"])
def test_queries_are_swept_in_chunks_alike(
    engine: str, tokens: str | None, briefly: Taught, monkeypatch: pytest.MonkeyPatch
):
    settings = {"engine": engine, "tokens": tokens, "k": 2} | briefly.asking
    whole = attribute(briefly.path, MANY[:4], **settings)
    monkeypatch.setattr(api, "AT_ONCE", 3)
    parts = attribute(briefly.path, MANY[:4], **settings)
    same(parts.influence, whole.influence)
    for part, other in zip(parts.token_influence, whole.token_influence, strict=True):
        same(part, other)
    for part, other in zip(parts.row_parts, whole.row_parts, strict=True):
        assert part.keys() == other.keys()
        for row in part:
            np.testing.assert_allclose(part[row], other[row], rtol=1e-2, atol=1e-5)


def test_a_vocabulary_is_asked_by_the_engine_that_holds_few_of_its_logits(
    briefly: Taught, monkeypatch: pytest.MonkeyPatch
):
    assert attribute(briefly.path, MANY[0], **briefly.asking).config.engine == "dense"
    monkeypatch.setattr(engine, "VOCABULARY", vocabulary_of(briefly.trainer.model) - 1)
    assert attribute(briefly.path, MANY[0], **briefly.asking).config.engine == "projected"


@pytest.mark.usefixtures("second_moment_is_held")
@pytest.mark.parametrize("mode", ["visits", "expected"])
def test_engines_agree(mode: str, taught: Taught):
    found = [ask(taught, MANY, engine=e, mode=mode, curvature="none") for e in ("projected", "dense")]
    assert distance(*found) < (0.02 if mode == "visits" else 0.1)


def messages(prompt: str = PROMPT, completion: str = COMPLETION.strip()) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def test_a_chat_in_each_of_its_forms(briefly: Taught):
    whole = [[*messages()[:1]], [*messages()[1:]]]
    forms = [messages(), {"messages": messages()}, {"prompt": whole[0], "completion": whole[1]}]
    first, *others = (ask(briefly, form) for form in forms)
    for other in others:
        same(first, other)
    same(first, ask(briefly, Dataset.from_list([{"messages": messages()}])))
    words = tokenizer()
    text = words.apply_chat_template(messages()[:1], tokenize=False, add_generation_prompt=True)
    said = words.apply_chat_template(messages(), tokenize=False)
    assert TEMPLATE
    same(first, ask(briefly, {"prompt": text, "completion": said[len(text) :]}))


def test_a_dataset_of_prompts_is_a_list_of_them(briefly: Taught):
    same(ask(briefly, Dataset.from_list(MANY)), ask(briefly, MANY))


def test_rows_that_are_tokenised_already_are_taken_as_they_are(briefly: Taught):
    words = tokenizer()
    ids, prompt = (words(text)["input_ids"] for text in (PROMPT + COMPLETION, PROMPT))
    row = {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}
    same(ask(briefly, Dataset.from_list([row])), ask(briefly, MANY[0]))
    same(ask(briefly, Dataset.from_list([row | {"prompt": "what", "completion": "ever"}])), ask(briefly, MANY[0]))
    same(ask(briefly, PROMPT + COMPLETION), ask(briefly, Dataset.from_list([{"input_ids": ids, "labels": ids}])))


@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_the_mean_over_a_querys_tokens_is_its_own_and_a_span_is_the_mean_over_its_own(engine: str, briefly: Taught):
    settings = {"engine": engine} | briefly.asking
    found = attribute(briefly.path, MANY[:3], tokens="query", **settings)
    same(found.influence, ask(briefly, MANY[:3], engine=engine))
    answer = [query.tokens.index(PLANTED[2]) for query in found.queries]
    spans = [query | {"span": PLANTED[2]} for query in MANY[:3]]
    same(np.stack([t[a] for t, a in zip(found.token_influence, answer, strict=True)]), ask(briefly, spans, **settings))
    same(found.token_influence[0][:2].mean(0)[None], ask(briefly, MANY[0] | {"span": "it is"}, engine=engine))


@pytest.mark.parametrize("engine", ["dense", "projected"])
@pytest.mark.parametrize("mode", ["visits", "expected"])
def test_the_parts_of_a_rows_tokens_sum_to_its_influence(engine: str, mode: str, briefly: Taught):
    found = attribute(briefly.path, MANY[:2], engine=engine, mode=mode, tokens="row", k=4, **briefly.asking)
    for query in range(2):
        for row in [*found.top(query), *found.bottom(query)]:
            assert len(row.parts) == len(row.content.tokens)
            assert row.parts.sum() == pytest.approx(row.influence, rel=1e-4, abs=1e-7)


@pytest.mark.usefixtures("second_moment_is_held")
@pytest.mark.parametrize("mode", ["visits", "expected"])
def test_the_parts_of_a_rows_tokens_are_those_of_the_other_engine(
    mode: str, taught: Taught, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(api, "with_shared", lambda parts, effect: parts)  # what tokens do alone, before shares of it
    settings = {"mode": mode, "curvature": "none", "tokens": "row", "k": 4} | taught.asking
    ours, other = (attribute(taught.path, MANY[:2], engine=e, **settings) for e in ("projected", "dense"))
    for found, truth in zip(ours.row_parts, other.row_parts, strict=True):
        rows = found.keys() & truth.keys()
        assert len(rows) >= 4
        one, two = (np.concatenate([parts[row] for row in sorted(rows)]) for parts in (found, truth))
        assert distance(one, two) < 0.1


@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_what_no_token_does_alone_is_its_share_of_the_denominator(
    engine: str, briefly: Taught, monkeypatch: pytest.MonkeyPatch
):
    """In expectation that is the mean over all tokens of the run: the same for each token of each row."""
    shared: list[tuple[int, float]] = []
    monkeypatch.setattr(
        api,
        "with_shared",
        lambda parts, effect: shared.append((len(parts), (effect - parts.sum()) / len(parts))) or parts,
    )
    found = attribute(briefly.path, MANY[0], engine=engine, mode="expected", tokens="row", k=8, **briefly.asking)
    each = np.array([share for _, share in shared])
    assert len({count for count, _ in shared}) > 1
    assert each.std() < 0.02 * np.abs([row.influence for row in found.top()]).max()
    assert abs(each.mean()) > 5 * each.std()


@pytest.mark.parametrize("engine", ["dense", "projected"])
@pytest.mark.parametrize("mode", ["visits", "expected"])
def test_a_query_of_one_row_is_the_held_out_loss_of_that_row(engine: str, mode: str, tmp_path: Path):
    run = mlp(tmp_path)
    found = attribute(run.path, run.held_out, dataset=run.rows, model=run.model, engine=engine, mode=mode).influence
    for number in range(3):
        alone = Run(run.model, run.rows, run.held_out.select([number]), run.path).score(engine, mode, curvature="auto")
        np.testing.assert_allclose(found[number], alone[:, -1], rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("second_moment_is_held")
def test_labels_of_each_token_are_asked_about_by_their_own_places(tmp_path: Path):
    """A tagger's loss looks at each token, a causal model's at the next one."""
    run = expected_run(tmp_path)
    settings = {"dataset": run.rows, "model": run.model, "data_collator": run.collator, "engine": "dense"}
    found = attribute(run.path, run.held_out, tokens="query", **settings)
    for number, query in enumerate(found.queries):
        assert len(query.tokens) == len(run.held_out[number]["labels"])
        np.testing.assert_allclose(found.token_influence[number].mean(0), found.influence[number], rtol=1e-4)
    rows = attribute(run.path, run.held_out, tokens="row", **settings)
    some = rows.top(0)[0]
    assert list(some.content.tokens) == [str(label) for label in run.rows[some.row]["labels"]]


@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_a_pool_of_candidates_is_asked_in_expectation(engine: str, tmp_path: Path):
    run = mlp(tmp_path)
    settings = {"model": run.model, "engine": engine, "mode": "expected"}
    whole = attribute(run.path, run.held_out, dataset=run.rows, **settings).influence
    pool = attribute(
        run.path, run.held_out, dataset=run.rows.select(range(9, 20)), train_dataset=run.rows, **settings
    ).influence
    assert distance(pool, whole[:, 9:20]) < (1e-5 if engine == "dense" else 0.2)


def test_rows_that_the_window_did_not_visit_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = mlp(tmp_path, num_train_epochs=1)
    with caplog.at_level(logging.WARNING):
        found = attribute(run.path, run.held_out, dataset=run.rows, model=run.model, mode="visits")
    missing = int((np.abs(found.influence).sum(0) == 0).sum())
    assert missing
    assert f"{missing} of 40 rows were not visited in the recorded window" in caplog.text


def test_a_model_in_training_mode_and_its_parameters_are_left_alone(briefly: Taught):
    before = [p.detach().clone() for p in briefly.trainer.model.parameters()]
    training = briefly.trainer.model.training
    ask(briefly, MANY[0], tokens="row")
    assert briefly.trainer.model.training == training
    assert all(torch.equal(a, b) for a, b in zip(before, briefly.trainer.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("queries", "error", "message"),
    [
        ([], ValueError, "no queries"),
        ([3], TypeError, "Query 0 is of no known form"),
        ([MANY[0], {"prompt": "what"}], TypeError, "Query 1 is of no known form"),
        (messages()[:1], ValueError, "must end with what the assistant said"),
        ("it", ValueError, "no token that the model was to say"),
        (MANY[0] | {"span": "blue"}, ValueError, "'blue' of query 0 is not in its completion"),
        (Dataset.from_list([{"input_ids": [5, 6], "labels": [-100, -100]}]), ValueError, "has no label"),
    ],
)
def test_queries_that_cannot_be_asked_are_refused(queries: Any, error: type, message: str, briefly: Taught):
    with pytest.raises(error, match=message):
        ask(briefly, queries)


def test_text_without_a_tokenizer_is_refused(briefly: Taught):
    with pytest.raises(ValueError, match="pass processing_class=tokenizer"):
        ask(briefly, "it is", processing_class=None)


def test_text_is_not_asked_of_a_classifier(tmp_path: Path):
    run = mlp(tmp_path)
    with pytest.raises(UnsupportedError, match="trained to go on with a text"):
        attribute(run.path, "w1 w2", dataset=run.rows, model=run.model, processing_class=tokenizer())


def test_a_trainer_stands_for_rows_model_collator_and_tokenizer(briefly: Taught):
    found = attribute(briefly.path, MANY[0], dataset=briefly.trainer, engine="projected")
    same(found.influence, ask(briefly, MANY[0]))
    assert "place0" in found.top(0)[0].content.text


@pytest.mark.parametrize("tokens", ["query", "row"])
def test_tokens_of_a_classifier_are_refused(tokens: str, tmp_path: Path):
    run = mlp(tmp_path)
    with pytest.raises(UnsupportedError, match="not known token by token"):
        attribute(run.path, run.held_out, dataset=run.rows, model=run.model, tokens=tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k must be a whole number"),
        ({"tokens": "both"}, "tokens must be one of"),
        ({"mode": "all"}, "mode must be one of"),
    ],
)
def test_arguments_that_cannot_be_worked_with_are_refused(settings: dict, message: str, briefly: Taught):
    with pytest.raises(ValueError, match=message):
        ask(briefly, MANY[0], **settings)


def test_what_add_influence_sketched_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = mlp(tmp_path)
    add_influence(run.rows, run.path, model=run.model, directions=8, engine="projected", eval_dataset=run.held_out)
    monkeypatch.setattr("hf_prune.influence.sketch.window_pass.WindowPass._step", None)
    attribute(run.path, toys.vectors(3, seed=5), dataset=run.rows, model=run.model, engine="projected")


def test_what_makes_influence_less_faithful_is_kept_with_it_whenever_it_is_asked(tmp_path: Path):
    run = mlp(tmp_path, optim="adamw_torch")
    asking = {"dataset": run.rows, "model": run.model, "engine": "projected"}
    first, from_sketches = (attribute(run.path, run.held_out, **asking) for _ in range(2))
    assert any("in so few steps" in doubt for doubt in first.doubts)
    assert from_sketches.doubts == first.doubts
    first.save(tmp_path / "found.safetensors")
    assert Attribution.load(tmp_path / "found.safetensors").doubts == first.doubts
