"""Cards: rendered, parsed, escaped, and merged into cards that somebody wrote."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Features
from huggingface_hub import DatasetCard, ModelCard
from markdown_it import MarkdownIt
from transformers import Trainer, ViTImageProcessor

from hf_prune import TrajectoryCallback, add_influence
from hf_prune.publish import card, merge, provenance, tasks
from hf_prune.publish.escape import code, text
from hf_prune.selection import prune
from tests import toys
from tests.publish import samples

START, END = "<!-- hf_prune:start -->", "<!-- hf_prune:end -->"
NASTY = "<script>alert(1)</script> `x`` | [a](http://evil.example) **b** \n# title\n---\nkey: value --> $x$ ![i](j)"


def markdown(card_text: str) -> list[Any]:
    return MarkdownIt("commonmark", {"html": True}).enable("table").parse(DatasetCard(card_text).text)


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    pruned = prune(samples.scored(run=samples.manifest()), keep=0.5)
    return provenance.build(pruned, source_id="org/reviews@" + "a" * 40, license="mit", observed=samples.OBSERVED)


def test_card_says_what_was_pruned_from_what_and_how_to_make_it_again(known):
    rendered = card.render(known, repo_id="me/half")
    data = DatasetCard(rendered).data
    assert data.license == "mit"
    assert data.source_datasets == ["org/reviews"]
    assert (data.task_categories, data.size_categories) == (["text-classification"], "n<1K")
    assert data.tags == ["dataset-pruning", "hf-prune"]
    for words in (
        "30 of the 60 rows",
        "Retrained on these rows, the model was better than as many random rows: +3.5 points of accuracy",
        "| `pos` | 30 | 15 |",
        "observed gap in `accuracy`",
        "0.005 [-0.01, 0.02]",
        "| observed change of the held-out loss | 0.031 [0.011, 0.051] | 0.12 |",
        "predicted shift",
        "prune(scored, keep=0.5)",
        "replay('me/half')",
        "BertForSequenceClassification",
        "AdamW",
        f"/org/reviews/tree/{'a' * 40}",
        known["source"]["content_digest"],
    ):
        assert words in rendered


def test_card_tells_the_steps_that_were_made_and_which_of_them_count(known):
    training = known["training"] | {"run": known["training"]["run"] | {"total_steps": 400, "last_step": 32}}
    influence = known["influence"] | {"until": 24, "draws": 8}
    rendered = card.render(known | {"training": training, "influence": influence}, repo_id="me/half")
    assert "| steps, seed | 32, 42 |" in rendered
    assert "until=24, draws=8)" in rendered


def test_tables_of_the_card_are_tables(known):
    tokens = markdown(card.render(known, repo_id="me/half"))
    assert [token.type for token in tokens].count("table_open") == 3
    assert not any("|---" in token.content for token in tokens if token.type == "inline")


def test_card_warns_where_the_source_names_no_licence():
    unknown = provenance.build(prune(samples.scored(), keep=0.5))
    rendered = card.render(unknown)
    assert "**Warning: the source names no licence.**" in rendered
    assert "as far as without as many random rows" in rendered  # what is predicted, where nothing was observed
    assert "license" not in DatasetCard(rendered).data.to_dict()
    assert "unknown" in rendered
    assert "replay('path/of/this/directory', source=train)" in rendered


def test_names_of_strangers_do_nothing_in_a_card():
    features = Features({**samples.plain().features, "label": ClassLabel(names=[NASTY, "pos"])})
    strange = samples.scored(samples.plain().cast(features))
    known = provenance.build(
        prune(strange, keep=0.5), observed=samples.OBSERVED | {"metric": NASTY, "protocol": NASTY}
    )
    rendered = card.render(known, repo_id="me/half")
    tokens = markdown(rendered)
    inline = [child for token in tokens for child in token.children or []]
    html = [token.content for token in (*tokens, *inline) if token.type in ("html_block", "html_inline")]
    assert [content.strip() for content in html] == [START, END]
    assert not any(token.type == "image" for token in inline)
    links = [token.attrs["href"] for token in inline if token.type == "link_open"]
    assert not any("evil" in link for link in links)
    assert DatasetCard(rendered).data.to_dict() == {
        "size_categories": "n<1K",
        "tags": ["dataset-pruning", "hf-prune"],
    }


@pytest.mark.parametrize("value", [NASTY, "`", "``a", "a\\", "", "x|y", "\u202eabc"])
def test_escaped_text_is_read_back_as_it_was(value):
    shown = " ".join(value.replace("\u202e", " ").split())
    (paragraph,) = [t for t in MarkdownIt().parse(f"a {text(value)} z") if t.type == "inline"]
    assert {child.type for child in paragraph.children} == {"text"}
    assert " ".join(paragraph.children[0].content.split()) == f"a {shown} z".replace("  ", " ")
    (paragraph,) = [t for t in MarkdownIt().parse(f"a {code(value)} z") if t.type == "inline"]
    spans = [child.content for child in paragraph.children if child.type == "code_inline"]
    assert [" ".join(span.split()) for span in spans] == [shown]


def test_merging_keeps_every_key_and_all_text(known):
    keys = {"license": "gpl-3.0", "tags": "mine", "custom": {"a": [1, None]}, "nothing": None, "license_name": "x"}
    text_before = "\n# Mine\n\nwith `code` and <b>HTML</b>\n"
    existing = f"---\n{yaml.safe_dump(keys, sort_keys=False)}---\n{text_before}"
    merged = card.render(known, repo_id="me/half", existing=existing)
    data = yaml.safe_load(merged.split("---\n")[1])
    united = {"tags": ["mine", "dataset-pruning", "hf-prune"], "source_datasets": ["org/reviews"]}
    united |= {"task_categories": ["text-classification"], "size_categories": "n<1K"}
    assert data == keys | united
    assert list(data)[:5] == list(keys)
    assert text_before in merged
    assert merged.index(text_before) < merged.index(START)


def test_merging_again_changes_nothing(known):
    for existing in ("", "# Mine", "---\na: 1\n---\n# Mine\n", "---\r\na: 1\r\n---\r\n# Mine\r\n", "text\n---\nmore"):
        once = card.render(known, repo_id="me/half", existing=existing)
        assert card.render(known, repo_id="me/half", existing=once) == once
        assert existing.replace("a: 1", "").strip("-\r\n") in once


def test_metadata_that_needs_nothing_is_left_byte_for_byte(known):
    keys = ["# a comment", "tags: [hf-prune,   'dataset-pruning']", "license: 'mit'", "source_datasets: [org/reviews]"]
    keys += ["size_categories: n<1K", "task_categories: [text-classification]"]
    head = "\n".join(["---", *keys, "---", ""])
    assert card.render(known, existing=head + "# Mine\n").startswith(head + "# Mine\n")


def test_new_part_replaces_the_old_one_in_its_place(known):
    existing = f"first line\n\n{START}\nold\n{END}\n\nlast line\n"
    merged = card.render(known, existing=existing)
    assert "\nold\n" not in merged
    assert merged.index("first line") < merged.index(START) < merged.index(END) < merged.index("last line")


def test_start_that_lost_its_end_swallows_no_text(known):
    existing = f"{START}\nmine\n"
    twice = card.render(known, existing=card.render(known, existing=existing))
    assert "mine" in twice
    assert twice.count(END) == 1


def test_parts_of_two_configs_live_side_by_side(known):
    fifty, thirty = known | {"config_name": "keep-50"}, known | {"config_name": "keep-30"}
    both = card.render(thirty, repo_id="me/half", existing=card.render(fifty, repo_id="me/half"))
    assert merge.section(both, "keep-50")
    assert merge.section(both, "keep-30")
    assert card.render(fifty, repo_id="me/half", existing=both) == both
    assert "replay('me/half', config_name='keep-30')" in both


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a-->b", "a\nb", "x--y"])
def test_config_name_that_cannot_be_a_folder_is_refused(name):
    with pytest.raises(ValueError, match="config_name"):
        card.folder(name)


def test_card_with_metadata_that_is_no_mapping_is_refused(known):
    with pytest.raises(ValueError, match="not a YAML mapping"):
        card.render(known, existing="---\n- a\n- b\n---\n")


def test_model_card_has_its_own_result_in_the_index_and_the_others_in_the_text(known):
    measured = {"eval_dataset_id": "org/reviews", "eval_split": "test", "license": "apache-2.0"}
    rendered = card.render_model(
        known, model_id="me/bert", dataset_id="me/half", dataset_revision="b" * 40, **measured
    )
    data = ModelCard(rendered).data
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.895)
    assert (result.dataset_type, result.dataset_split, result.task_type) == (
        "org/reviews",
        "test",
        "text-classification",
    )
    assert data.datasets == ["me/half"]
    assert (data.base_model, data.license, data.pipeline_tag) == (
        "google-bert/bert-base-uncased",
        "apache-2.0",
        "text-classification",
    )
    for words in (
        "48 % less time",
        "| all rows | 60 | 0.9 |",
        f"/me/half/tree/{'b' * 40}",
        "better than as many random",
    ):
        assert words in rendered


def test_no_result_is_listed_where_what_was_measured_on_is_not_named(known):
    assert ModelCard(card.render_model(known, model_id="me/bert", dataset_id="me/half")).data.eval_results is None
    other = known | {"training": known["training"] | {"model": known["training"]["model"] | {"class": "Net"}}}
    rendered = card.render_model(other, model_id="me/net", dataset_id="me/half")
    assert ModelCard(rendered).data.pipeline_tag is None
    assert "pipeline(" not in rendered
    with pytest.raises(ValueError, match="pass task="):
        card.render_model(other, model_id="me/net", dataset_id="me/half", eval_dataset_id="org/reviews")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("PeftModelForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
        ("ViTForImageClassification", "image-classification"),
        ("Wav2Vec2ForSequenceClassification", "audio-classification"),
        ("Mlp", None),
        (None, None),
    ],
)
def test_the_task_is_that_of_the_models_class(name, task):
    assert tasks.of_class(name) == task


@pytest.mark.parametrize(
    ("rows", "size"), [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (25_000, "10K<n<100K"), (10**12, "n>1T")]
)
def test_sizes_are_named_as_on_the_hub(rows, size):
    assert card.size_category(rows) == size


def code_of(rendered: str) -> list[str]:
    """The code blocks of a card."""
    return [token.content for token in markdown(rendered) if token.type == "fence"]


def test_every_line_of_code_in_a_card_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, args = toys.images(32), toys.arguments(tmp_path / "out", num_train_epochs=1)
    names = {"model": toys.vit(), "args": args, "train": rows, "dev": toys.images(16, seed=1)}
    trainer = Trainer(names["model"], args, train_dataset=rows, callbacks=[TrajectoryCallback(tmp_path / "run")])
    trainer.train()
    scored = add_influence(trainer, tmp_path / "run", eval_dataset=names["dev"], directions=8)
    pruned = prune(scored, keep=0.5, seed=3)
    pruned.save_to_disk(tmp_path / "half")
    made, rebuilt = code_of((tmp_path / "half" / "README.md").read_text(encoding="utf-8"))
    assert ".push_to_hub('org/name')" in made
    exec(made.replace("push_to_hub('org/name'", "push_to_hub('org/name', dry_run=True"), names)
    assert names["scored"].column_names == scored.column_names
    assert len(names["pruned"]) == 16
    exec(rebuilt.replace("path/of/this/directory", str(tmp_path / "half")), names)
    assert len(names["rows"]) == 16
    names["model"].save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    document = provenance.build(pruned, observed=samples.OBSERVED)
    (use,) = code_of(card.render_model(document, model_id="me/vit", dataset_id="me/half"))
    exec(use.replace("me/vit", str(tmp_path / "model")), names)
    assert names["model"].task == "image-classification"


def test_model_card_without_results_is_refused(known):
    with pytest.raises(ValueError, match="needs results"):
        card.render_model(known | {"observed": None}, model_id="me/bert", dataset_id="me/half")
