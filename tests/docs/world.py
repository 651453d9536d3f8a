"""What the pages of the documentation find where they run: tiny checkpoints under the names of real ones, and data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    set_seed,
)

GOOD, BAD = ("fine", "lovely", "great", "clever"), ("dull", "poor", "awful", "slow")
OTHERS = ("the", "film", "is", "a", "plot", "and", "its", "actors", "write", "review", "good", "bad")
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <eos> {% endfor %}"


def make(home: Path) -> None:
    """Writes all of it into a directory."""
    set_seed(0)
    words = tokenizer()
    bert = DistilBertConfig(
        vocab_size=len(words), dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=128
    )
    llama = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    vit = ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    for name, model, processor in (
        ("distilbert/distilbert-base-uncased", DistilBertModel(bert), words),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", LlamaForCausalLM(llama), words),
        ("google/vit-base-patch16-224-in21k", ViTModel(vit), ViTImageProcessor(size={"height": 32, "width": 32})),
    ):
        model.save_pretrained(home / name)
        processor.save_pretrained(home / name)
    rng = np.random.default_rng(0)
    texts(home, rng)
    pictures(home, rng)


def tokenizer() -> PreTrainedTokenizerFast:
    known = ("<pad>", "<eos>", "[CLS]", "[SEP]", "[UNK]", "user", "assistant", *GOOD, *BAD, *OTHERS)
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="[UNK]", chat_template=TEMPLATE
    )


def text(label: int, rng: np.random.Generator) -> str:
    """A review of 6 to 12 words, most of them in keeping with its label."""
    judged = rng.choice((BAD, GOOD)[label], rng.integers(2, 5))
    return " ".join(rng.permutation([*judged, *rng.choice(OTHERS, rng.integers(4, 9))]))


def texts(home: Path, rng: np.random.Generator) -> None:
    reviews = {}  # no text twice
    while len(reviews) < 200:
        label = int(rng.integers(2))
        reviews[text(label, rng)] = label if rng.random() > 0.15 else 1 - label
    lines = ["text,label", *(f"{review},{label}" for review, label in reviews.items())]
    (home / "reviews.csv").write_text("\n".join(lines) + "\n")
    for name, rows in (("chats", 60), ("pool", 40)):
        lines = [json.dumps(chat(int(label), rng)) for label in rng.integers(0, 2, rows)]
        (home / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def chat(label: int, rng: np.random.Generator) -> dict[str, object]:
    kind = ("bad", "good")[label]
    asked = {"role": "user", "content": f"write a {kind} review"}
    return {"messages": [asked, {"role": "assistant", "content": text(label, rng)}], "kind": kind}


def pictures(home: Path, rng: np.random.Generator) -> None:
    for split, rows in (("train", 36), ("validation", 8)):
        for name, shade in (("cats", 80), ("dogs", 160)):
            folder = home / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(rows):
                pixels = np.clip(rng.normal(shade, 40, (40, 40, 3)), 0, 255).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{i}.png")
