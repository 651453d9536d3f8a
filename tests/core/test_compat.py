"""The libraries still have, and still do, what `hf_prune._core.compat` takes from behind their public faces."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher
from datasets import Dataset, Features, Value
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.func import functional_call, vmap
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers.trainer_utils import RemoveColumnsCollator

from hf_prune._core import compat


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict({"x": [10, 11, 12, 13], "y": list("abcd")})


@pytest.fixture
def loader() -> DataLoader:
    return DataLoader(list(range(6)), batch_size=2)  # type: ignore[arg-type]


def bert() -> BertForSequenceClassification:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForSequenceClassification(BertConfig(vocab_size=20, attn_implementation="eager", **sizes)).eval()


# ---- datasets ----


def test_a_fingerprint_follows_the_rows(rows: Dataset):
    again = Dataset.from_dict({"x": [10, 11, 12, 13], "y": list("abcd")})
    assert compat.fingerprint(rows) == compat.fingerprint(again)
    assert compat.fingerprint(rows) != compat.fingerprint(rows.select([1, 0]))


def test_row_indices_lead_from_rows_to_the_table_below(rows: Dataset):
    assert compat.row_indices(rows) is None
    chosen = rows.select([3, 1])
    indices = compat.row_indices(chosen)
    assert indices is not None
    assert chosen.data.column("x").take(indices).to_pylist() == chosen["x"][:]


def test_mapped_blocks_are_the_files_and_not_what_was_added_in_memory(rows: Dataset, tmp_path: Path):
    assert compat.mapped_blocks(rows) == []
    rows.save_to_disk(str(tmp_path))
    loaded = Dataset.load_from_disk(str(tmp_path))
    for mapped in (loaded, loaded.add_column("z", [1, 2, 3, 4])):
        ((file, table),) = compat.mapped_blocks(mapped)
        assert Path(file).parent == tmp_path.resolve()
        assert table.column_names == ["x", "y"]
        assert table.column("x").to_pylist() == [10, 11, 12, 13]


def test_a_dataset_of_another_class_has_the_same_rows_format_and_fingerprint(rows: Dataset):
    class Own(Dataset):
        pass

    chosen = rows.select([2, 0]).with_format("numpy", columns=["x"], output_all_columns=True)
    own = compat.as_class(chosen, Own)
    assert type(own) is Own
    assert own.format == chosen.format
    assert compat.fingerprint(own) == compat.fingerprint(chosen)
    assert own[:]["y"] == ["c", "a"]
    assert isinstance(own[:]["x"], np.ndarray)
    assert type(compat.as_class(own, Dataset)) is Dataset


def test_another_info_goes_with_the_rows(rows: Dataset):
    info = rows.info.copy()
    info.features = Features({**rows.features, "x": Value("int64", id="ours")})
    made = compat.as_class(rows, Dataset, info)
    assert made.select([1, 0]).features["x"].id == "ours"
    assert compat.fingerprint(made) == compat.fingerprint(rows)
    assert rows.features["x"].id is None


@pytest.mark.parametrize(
    ("made", "shuffled"),
    [
        (lambda stream: stream, False),
        (lambda stream: stream.map(lambda row: row), False),
        (lambda stream: stream.shuffle(seed=0, buffer_size=2), True),
        (lambda stream: stream.shuffle(seed=0, buffer_size=2).map(lambda row: row).filter(bool), True),
    ],
    ids=["plain", "mapped", "shuffled", "shuffled, then mapped"],
)
def test_a_shuffled_stream_is_known_by_any_of_its_stages(rows: Dataset, made: Any, shuffled: bool):
    assert compat.is_shuffled(made(rows.to_iterable_dataset(num_shards=2))) is shuffled


# ---- transformers ----


def test_a_loaded_model_tells_where_it_came_from_and_a_new_one_does_not(tmp_path: Path):
    model = bert()
    assert compat.hub_name(model) is None
    assert compat.hub_name(nn.Linear(1, 1)) is None
    commit, cached = "0" * 40, tmp_path / "models--org--name"  # as the Hub's cache lays files out
    model.save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    loaded = BertForSequenceClassification.from_pretrained("org/name", cache_dir=tmp_path, local_files_only=True)
    assert compat.hub_name(loaded) == "org/name"
    kept = "resolve_revision" not in vars(transformers.utils.hub)  # since then configs do not keep the commit
    assert compat.hub_commit(loaded) == (commit if kept else None)
    loaded.config._commit_hash = commit
    assert compat.hub_commit(loaded) == commit


def test_masks_need_the_patch_under_vmap_and_are_the_same_with_it():
    model, ids = bert(), torch.arange(12).reshape(3, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    whole = model(input_ids=ids, attention_mask=mask).logits

    def one(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": ids[None], "attention_mask": mask[None]}
        return functional_call(model, dict(model.named_parameters()), (), inputs).logits[0]

    with pytest.raises(RuntimeError, match="data-dependent"):
        vmap(one)(ids, mask)
    with compat.masks_for_vmap():
        torch.testing.assert_close(vmap(one)(ids, mask), whole)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, whole)


def test_packed_pieces_need_the_patch_under_vmap_and_do_not_see_each_other_with_it():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, attn_implementation="eager", use_cache=False, **sizes)).eval()
    ids, places = torch.arange(12).reshape(2, 6), torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]])

    def one(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": ids[None], "position_ids": places[None]}
        return functional_call(model, dict(model.named_parameters()), (), inputs).logits[0]

    with pytest.raises(RuntimeError, match="data-dependent"):
        vmap(one)(ids, places)
    with compat.masks_for_vmap():
        found = vmap(one)(ids, places)
        torch.testing.assert_close(model(input_ids=ids, position_ids=places).logits, found)
    for row, cut in enumerate((3, 2)):
        pieces = [model(input_ids=ids[row : row + 1, part]).logits[0] for part in (slice(0, cut), slice(cut, None))]
        torch.testing.assert_close(found[row], torch.cat(pieces))


def test_attention_is_fused_while_the_block_runs(monkeypatch: pytest.MonkeyPatch):
    model, ids = bert().eval(), torch.arange(12).reshape(3, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    model.set_attn_implementation("eager")
    called, real = [], torch.nn.functional.scaled_dot_product_attention

    def seen(*args: Any, **kwargs: Any) -> torch.Tensor:
        called.append(True)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    eager = model(input_ids=ids, attention_mask=mask).logits
    assert not called
    with compat.fused_attention(model):
        fused = model(input_ids=ids, attention_mask=mask).logits
    assert called
    torch.testing.assert_close(fused, eager)
    assert model.config._attn_implementation == "eager"


# ---- accelerate ----


def test_the_prepared_dataloader_holds_torchs(loader: DataLoader):
    prepared = Accelerator(cpu=True).prepare_data_loader(loader)
    base = compat.base_dataloader(prepared)
    assert isinstance(base, DataLoader)
    assert base.dataset is loader.dataset
    assert [[int(i) for i in batch] for batch in base.batch_sampler] == [[0, 1], [2, 3], [4, 5]]
    assert compat.base_dataloader(loader) is loader


def test_a_dispatching_dataloader_is_told_from_others(loader: DataLoader):
    assert compat.is_dispatcher(DataLoaderDispatcher(loader.dataset))
    assert not compat.is_dispatcher(Accelerator(cpu=True).prepare_data_loader(loader))


def test_the_stateful_dataloaders_name_is_the_one_that_accelerate_imports(loader: DataLoader):
    source = inspect.getsource(sys.modules["accelerate.data_loader"])
    assert "import StatefulDataLoader" in source
    assert not compat.is_stateful(loader)
    assert compat.is_stateful(type("StatefulDataLoader", (), {})())


def test_asking_whether_processes_are_set_up_does_not_set_them_up():
    script = (
        "from accelerate import PartialState; from hf_prune._core import compat; "
        "first = compat.processes_are_set_up(); PartialState(cpu=True); print(first, compat.processes_are_set_up())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


# ---- torch ----


def test_a_batch_sampler_is_replaced_and_put_back(loader: DataLoader):
    before = loader.batch_sampler
    undo = compat.replace_batch_sampler(loader, lambda inner: [[5, 0], [1, 2]])
    assert [batch.tolist() for batch in loader] == [[5, 0], [1, 2]]
    undo()
    assert loader.batch_sampler is before


def test_batch_norms_of_all_dimensions_are_known_and_others_are_not():
    norms = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2)]
    assert all(map(compat.is_batch_norm, norms))
    assert not any(map(compat.is_batch_norm, [nn.LayerNorm(2), nn.GroupNorm(1, 2)]))


def test_no_hook_and_no_foreign_forward_runs_after_their_removal():
    called: list[str] = []
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: called.append("forward"))
    layer.register_forward_pre_hook(lambda *_: called.append("before"))
    layer.register_full_backward_hook(lambda *_: called.append("backward"))
    layer.forward = lambda x: called.append("patched")  # type: ignore[assignment]
    compat.remove_hooks(layer)
    layer(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert called == []


def test_a_hook_is_disabled_for_dynamo_only_where_dynamo_is_loaded(monkeypatch: pytest.MonkeyPatch):
    def hook() -> None: ...

    with monkeypatch.context() as without:
        without.setattr(compat, "sys", SimpleNamespace(modules={}))
        assert compat.no_dynamo(hook) is hook
    import torch._dynamo

    seen: list[str] = []

    def noting(x: torch.Tensor) -> torch.Tensor:
        seen.append(type(x).__name__)
        return x

    wrapped = compat.no_dynamo(noting)
    compiled = torch.compile(lambda x: wrapped(x + 1) * 2, backend="eager")
    assert compiled(torch.zeros(2)).tolist() == [2.0, 2.0]
    compiled(torch.zeros(2))
    assert seen == ["Tensor", "Tensor"]  # a traced one would be called with a stand-in, and once


class Listener:
    def __init__(self) -> None:
        self.norms: list[float] = []

    def observe(self, parameters: list[torch.Tensor], norm: torch.Tensor) -> None:
        self.norms.append(float(norm))


def test_accelerates_clipping_is_heard_and_does_what_it_did():
    layer = nn.Linear(1, 1)
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    original, listener = nn.utils.clip_grad_norm_, Listener()
    compat.listen_to_clipping(listener)
    Accelerator(cpu=True).clip_grad_norm_(layer.parameters(), 1.0)
    nn.utils.clip_grad_norm_(layer.parameters(), 1.0, norm_type=1.0)  # another norm is not the one that was asked for
    compat.stop_listening_to_clipping(listener)
    assert listener.norms == [pytest.approx(3 * 2**0.5)]
    assert nn.utils.clip_grad_norm_ is original
    assert sum(float(p.grad.norm(1)) for p in layer.parameters()) == pytest.approx(1.0)  # type: ignore[union-attr]


def test_a_listener_that_is_forgotten_hears_no_more():
    original, gone, listener = nn.utils.clip_grad_norm_, Listener(), Listener()
    compat.listen_to_clipping(gone)
    compat.listen_to_clipping(listener)
    del gone
    nn.utils.clip_grad_norm_([nn.Parameter(torch.ones(1))], 1.0)
    assert len(listener.norms) == 1
    compat.stop_listening_to_clipping(listener)
    assert nn.utils.clip_grad_norm_ is original


class BackwardListener:
    def __init__(self) -> None:
        self.losses: list[float] = []

    def observe_backward(self, loss: torch.Tensor) -> None:
        self.losses.append(float(loss.detach()))


def test_accelerates_backward_is_heard_and_does_what_it_did():
    original, listener, gone = Accelerator.backward, BackwardListener(), BackwardListener()
    compat.listen_to_backward(listener)
    compat.listen_to_backward(gone)
    del gone
    leaf = torch.ones(1, requires_grad=True)
    Accelerator(cpu=True).backward((3 * leaf).sum())
    compat.stop_listening_to_backward(listener)
    assert listener.losses == [3.0]
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [3.0]
    assert Accelerator.backward is original


def test_the_collator_is_found_behind_the_trainers_removal_of_columns():
    def own(rows: list[Any]) -> list[Any]:
        return rows

    plain = torch.utils.data.DataLoader([1, 2], collate_fn=own)
    assert compat.collator(plain) is own
    removing = RemoveColumnsCollator(own, ["x"])
    assert compat.collator(torch.utils.data.DataLoader([1, 2], collate_fn=removing)) is own


def test_the_model_without_its_adapter_is_the_base_or_the_copy_of_it():
    torch.manual_seed(0)
    base, inputs = bert(), {"input_ids": torch.arange(6)[None]}
    before = base(**inputs).logits
    config = LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    after = model(**inputs).logits
    with compat.without_adapter(model):
        assert torch.equal(model(**inputs).logits, before)
    model.add_adapter("ref", config)
    with compat.without_adapter(model):
        assert not torch.equal(model(**inputs).logits, before)
    assert torch.equal(model(**inputs).logits, after)


def test_trls_trainers_are_known_by_their_arguments(tmp_path: Path):
    trl = pytest.importorskip("trl", reason="trl is an optional integration")

    class Own(trl.DPOConfig):
        pass

    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    assert compat.trl_trainer(Own(**settings)) == "DPOTrainer"
    assert compat.trl_trainer(trl.SFTConfig(**settings)) == "SFTTrainer"
    assert compat.trl_trainer(transformers.TrainingArguments(str(tmp_path), use_cpu=True)) is None


def test_a_plain_model_names_no_losses_of_sentences_and_no_quantisation():
    # those of models that do are in tests/influence/test_model_loss.py and test_quantized.py
    assert compat.sentence_losses(bert()) == []
    assert compat.quantization(bert()) is None


@pytest.mark.parametrize("double", [False, True])
def test_weights_in_4_and_8_bits_are_read_as_bitsandbytes_reads_them(double: bool):
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is an optional integration")
    torch.manual_seed(0)
    dense = torch.randn(32, 64)
    layers = [
        bnb.nn.Linear4bit(64, 32, bias=False, quant_type="nf4", compress_statistics=double),
        bnb.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False),
    ]
    for layer, error in zip(layers, (0.15, 0.02), strict=True):
        layer.load_state_dict({"weight": dense})
        layer.to("cpu")
        x = torch.randn(3, 64, requires_grad=True)
        layer(x).sum().backward()
        decode = compat.decode_of(layer)
        assert decode is not None
        assert torch.allclose(x.grad, decode(decode.held).sum(0).expand(3, -1), atol=1e-4)
        assert float((decode(decode.held) - dense).norm() / dense.norm()) < error
    assert compat.decode_of(nn.Linear(2, 2)) is None


def test_every_item_has_a_test_here():
    own = [name for name, value in vars(compat).items() if getattr(value, "__module__", "") == compat.__name__]
    source = Path(__file__).read_text(encoding="utf-8")
    functions = [name for name in own if inspect.isfunction(getattr(compat, name))]
    assert [name for name in functions if f"compat.{name}" not in source] == []


def test_the_model_inside_an_adapter_is_found_and_one_without_is_itself() -> None:
    base = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    assert compat.base_model(base) is base
    assert compat.base_model(get_peft_model(base, LoraConfig(target_modules=["0"]))) is base
