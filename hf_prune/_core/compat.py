"""
Every use of what torch, transformers, datasets and accelerate do not promise to keep: private attributes, functions
that are replaced for a while, classes that are told by their names.

When one of these libraries changes, this is the file to read, and `sharding.py` for FSDP2; `tests/core/test_compat.py`
has a test for each item.
Libraries are imported where they are used, so that reading a dataset does not wait for torch.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakSet

from hf_prune._core.sharding import class_of

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from datasets import Dataset, DatasetInfo, IterableDataset
    from torch import nn

    SomeDataset = TypeVar("SomeDataset", bound=Dataset)

# ---- datasets ----


def fingerprint(dataset: Dataset) -> str:
    """The fingerprint by which `datasets` names its cache files."""
    return dataset._fingerprint


def row_indices(dataset: Dataset) -> pa.ChunkedArray | None:
    """Which rows of `dataset.data` are the dataset's, in order; `None` if they are all of them."""
    return None if dataset._indices is None else dataset._indices.column(0)


def mapped_blocks(dataset: Dataset) -> list[tuple[str, pa.Table]]:
    """File and rows of each memory-mapped part of `dataset.data`."""
    from datasets.table import MemoryMappedTable

    blocks = getattr(dataset.data, "blocks", [[dataset.data]])
    return [(block.path, block.table) for row in blocks for block in row if isinstance(block, MemoryMappedTable)]


def as_class(dataset: Dataset, kind: type[SomeDataset], info: DatasetInfo | None = None) -> SomeDataset:
    """The same rows, format and fingerprint as a dataset of class `kind`, with another `info`; nothing is copied."""
    made = kind(
        dataset.data,
        info=dataset.info if info is None else info,
        split=dataset.split,
        indices_table=dataset._indices,
        fingerprint=dataset._fingerprint,
    )
    made.set_format(
        dataset._format_type, dataset._format_columns, dataset._output_all_columns, **dataset._format_kwargs
    )
    made._fingerprint = dataset._fingerprint  # `set_format` marks its dataset as changed, but this is the same one
    return made


def is_shuffled(stream: IterableDataset) -> bool:
    """Whether any stage of the stream shuffles."""
    stage = stream._ex_iterable
    while stage is not None:
        if "Shuffled" in type(stage).__name__:
            return True
        stage = getattr(stage, "ex_iterable", None)
    return False


# ---- transformers ----


def hub_name(model: Any) -> str | None:
    """The name or path that the model was loaded from; `None` for one that was made from a config."""
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None


def hub_commit(model: Any) -> str | None:
    """The Hub commit that the model was loaded from, where its config keeps it, as older transformers do."""
    return getattr(getattr(model, "config", None), "_commit_hash", None)


@contextmanager
def masks_for_vmap() -> Iterator[None]:
    """Builds attention masks without looking at their values, which `vmap` cannot do."""
    from transformers import masking_utils
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

    def pieces(position_ids: torch.Tensor) -> torch.Tensor:
        steps = position_ids.diff(prepend=position_ids[:, :1] - 1, dim=-1)
        return (steps != 1).cumsum(-1)

    def whole_mask(*args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs["allow_is_bidirectional_skip"] = False
        return eager_mask(*args, **kwargs)

    before = ALL_MASK_ATTENTION_FUNCTIONS["eager"]
    looking = masking_utils.find_packed_sequence_indices
    ALL_MASK_ATTENTION_FUNCTIONS["eager"] = whole_mask
    masking_utils.find_packed_sequence_indices = pieces
    try:
        yield
    finally:
        ALL_MASK_ATTENTION_FUNCTIONS["eager"] = before
        masking_utils.find_packed_sequence_indices = looking


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The model of a PEFT adapter before that was trained: its base, or what trl copied to the adapter `"ref"`."""
    if "ref" not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    before = model.active_adapter
    model.set_adapter("ref")
    try:
        yield
    finally:
        model.set_adapter(before)


def quantization(model: Any) -> str | None:
    """What quantised the model's weights, as transformers names it; `None` for a model as it is."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    method = getattr(base, "quantization_method", None)
    return None if method is None else str(getattr(method, "value", method))


def trl_trainer(args: Any) -> str | None:
    """The trainer of trl that arguments of this class belong to, such as `"SFTTrainer"`; `None` for any other."""
    found = (kind.__name__ for kind in type(args).__mro__ if kind.__module__.startswith("trl."))
    name = next((name for name in found if name.endswith("Config")), None)
    return None if name is None else name.removesuffix("Config") + "Trainer"


def sentence_losses(model: Any) -> list[str]:
    """The classes of the losses that a SentenceTransformerTrainer trains, as its model's card names them."""
    described = getattr(getattr(model, "model_card_data", None), "train_datasets", None) or []
    return [one["loss"]["fullname"].rpartition(".")[2] for one in described if "loss" in one]


@contextmanager
def fused_attention(model: nn.Module) -> Iterator[None]:
    """Torch's own attention while the block runs, in all parts of the model that know it."""
    from transformers import PreTrainedModel

    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    configs = {id(part.config): part.config for part in parts if part._supports_sdpa}
    before = {number: config._attn_implementation for number, config in configs.items()}
    for config in configs.values():
        config._attn_implementation_internal = "sdpa"
    try:
        yield
    finally:
        for number, config in configs.items():
            config._attn_implementation_internal = before[number]


# ---- bitsandbytes ----


class Decode:
    """
    What makes numbers of the weights of a layer that holds them in 4 or 8 bits.

    Args:
        held (`torch.Tensor`): The weights as they are held.
        scales (`Any`): Of 4 bits bitsandbytes' `QuantState`, of 8 bits the largest magnitude in each row.
    """

    def __init__(self, held: torch.Tensor, scales: Any):
        self.held, self.scales = held, scales

    def __call__(self, held: torch.Tensor) -> torch.Tensor:
        """The weights `(out_features, in_features)`."""
        if self._of_bytes:
            return held.float() * (self.scales.float() / 127)[:, None]
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(held, self.scales)

    @property
    def _of_bytes(self) -> bool:
        import torch

        return isinstance(self.scales, torch.Tensor)


def decode_of(layer: nn.Module) -> Decode | None:
    """How the weights of one of bitsandbytes' linear layers are read; `None` for any other layer."""
    if "bitsandbytes" not in sys.modules:
        return None
    import bitsandbytes as bnb
    import torch

    if not isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
        return None
    weight: Any = layer.weight
    held = weight.detach().as_subclass(torch.Tensor)
    if isinstance(layer, bnb.nn.Linear8bitLt):
        return Decode(held, weight.SCB if layer.state.SCB is None else layer.state.SCB)
    state = weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):  # what a pass in eval mode makes of them on some CPUs
        held, state = bnb.functional._convert_weight_packed_for_cpu_inverse(held, copy.copy(state))
    return Decode(held, state)


# ---- accelerate ----


def base_dataloader(dataloader: Any) -> Any:
    """The torch dataloader inside the one that accelerate prepared."""
    return getattr(dataloader, "base_dataloader", dataloader)


def collator(dataloader: Any) -> Any:
    """What makes batches of rows, without the Trainer's wrapper that removes columns."""
    outer = base_dataloader(dataloader).collate_fn
    return getattr(outer, "data_collator", outer)


def is_dispatcher(dataloader: Any) -> bool:
    """Whether one process reads all batches and hands them out."""
    return type(dataloader).__name__ == "DataLoaderDispatcher"


def is_stateful(dataloader: Any) -> bool:
    """Whether the prepared dataloader is torchdata's, which skips batches itself."""
    return type(base_dataloader(dataloader)).__name__ == "StatefulDataLoader"


def processes_are_set_up() -> bool:
    """Whether accelerate knows the processes of this launch already; asking `PartialState()` would set them up."""
    from accelerate import PartialState

    return bool(PartialState._shared_state)


class BackwardListener(Protocol):
    """Is told of each backward pass."""

    def observe_backward(self, loss: torch.Tensor) -> None:
        """
        Args:
            loss (`torch.Tensor`): What the Trainer takes the gradient of.
        """


# A run that raised never takes its listener off: a weak reference lets it go with its owner.
_backward_listeners: WeakSet[BackwardListener] = WeakSet()


def listen_to_backward(listener: BackwardListener) -> None:
    """
    Tells `listener` of each call of `Accelerator.backward`, through which the Trainer takes gradients.

    No callback is given the loss that the Trainer made of the model's. The wrapper changes nothing else.
    """
    from accelerate import Accelerator

    _backward_listeners.add(listener)
    original = Accelerator.backward
    if hasattr(original, "_hf_prune_original"):
        return

    @functools.wraps(original)
    def backward(self: Accelerator, loss: torch.Tensor, **kwargs: Any) -> None:
        # Some versions of transformers (5.2) divide by the accumulated batches and let accelerate do so once more.
        again = self.gradient_accumulation_steps
        for each in _backward_listeners:
            each.observe_backward(loss / again if again > 1 else loss)
        original(self, loss, **kwargs)

    backward._hf_prune_original = original  # type: ignore[attr-defined]
    Accelerator.backward = backward


def stop_listening_to_backward(listener: BackwardListener) -> None:
    """Takes a listener off, and with the last one the wrapper, unless somebody has put another over it."""
    from accelerate import Accelerator

    _backward_listeners.discard(listener)
    if not _backward_listeners and hasattr(Accelerator.backward, "_hf_prune_original"):
        Accelerator.backward = Accelerator.backward._hf_prune_original


# ---- torch ----


def replace_batch_sampler(dataloader: Any, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """
    Puts `wrap(batch_sampler)` into a dataloader, which forbids to set it once it is built.

    Returns:
        `Callable[[], None]`: Puts the old one back.
    """
    base = base_dataloader(dataloader)
    inner = base.batch_sampler
    object.__setattr__(base, "batch_sampler", wrap(inner))
    return lambda: object.__setattr__(base, "batch_sampler", inner)


def base_model(model: nn.Module) -> nn.Module:
    """The model inside an adapter of peft; without one the model itself."""
    adapted: Any = model
    return adapted.get_base_model() if class_of(model).__name__.startswith("PeftModel") else model


def is_batch_norm(module: nn.Module) -> bool:
    """Whether the module is a batch norm of any number of dimensions."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return isinstance(module, _BatchNorm)


def remove_hooks(module: nn.Module) -> None:
    """Removes the module's hooks, and a `forward` that was set on it from outside."""
    module.__dict__.pop("forward", None)
    for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
        hooks.clear()


def no_dynamo(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, left out of what torch.compile traces; a run that is not compiled is spared dynamo's slow import."""
    if "torch._dynamo" not in sys.modules:
        return hook
    import torch

    return torch.compiler.disable(hook)


class ClipListener(Protocol):
    """Is told of each clipping."""

    def observe(self, parameters: list[torch.Tensor], norm: torch.Tensor) -> None:
        """
        Args:
            parameters (`list[torch.Tensor]`): What was clipped.
            norm (`torch.Tensor`): The 2-norm of all their gradients together, before.
        """


# A run that raised never takes its listener off: a weak reference lets it go with its owner.
_listeners: WeakSet[ClipListener] = WeakSet()


def listen_to_clipping(listener: ClipListener) -> None:
    """
    Tells `listener` of each call of `torch.nn.utils.clip_grad_norm_` with the 2-norm.

    Accelerate looks the function up at each call, so a wrapper in its place sees the norm before clipping, which no
    callback is given. The wrapper changes nothing else.
    """
    import torch

    _listeners.add(listener)
    original = torch.nn.utils.clip_grad_norm_
    if hasattr(original, "_hf_prune_original"):
        return

    def clip_grad_norm_(parameters: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        norm = original(parameters, *args, **kwargs)
        if float(kwargs.get("norm_type", args[1] if len(args) > 1 else 2.0)) == 2.0:
            for each in _listeners:
                each.observe(parameters, norm)
        return norm

    clip_grad_norm_._hf_prune_original = original  # type: ignore[attr-defined]
    torch.nn.utils.clip_grad_norm_ = clip_grad_norm_


def stop_listening_to_clipping(listener: ClipListener) -> None:
    """Takes a listener off, and with the last one the wrapper, unless somebody has put another over it."""
    import torch

    _listeners.discard(listener)
    current = torch.nn.utils.clip_grad_norm_
    if not _listeners and hasattr(current, "_hf_prune_original"):
        torch.nn.utils.clip_grad_norm_ = current._hf_prune_original
