"""Slopes and curvature of losses in the logits."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, hessian, vmap

from hf_prune.model import losses
from hf_prune.model.batch import IGNORED, Batch
from hf_prune.model.losses import ExampleLoss, from_user, smoothed

CLASSES = torch.tensor([0, 2, IGNORED, 1])
TOKENS = torch.tensor([[0, 1, 2], [IGNORED, 2, IGNORED], [1, 1, 1], [2, 0, IGNORED]])


def margin(logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Straight in the logits wherever it is not zero."""
    own = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return (inputs["weights"] * (5 - own)).clamp(min=0)


SCALE = torch.nn.Parameter(torch.tensor(2.0))


def straight(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Times a parameter of the loss's own."""
    return SCALE * logits[:, 0]


@pytest.mark.parametrize(
    ("loss", "shape", "labels"),
    [
        (losses.CROSS_ENTROPY, (3,), CLASSES),
        (smoothed(losses.CROSS_ENTROPY, 0.1), (3,), CLASSES),
        (losses.SOFT_CROSS_ENTROPY, (3,), torch.rand(4, 3)),
        (losses.SQUARED_ERROR, (3,), torch.rand(4, 3)),
        (losses.SQUARED_ERROR, (1,), torch.rand(4)),
        (losses.BINARY_CROSS_ENTROPY, (3,), torch.rand(4, 3)),
        (losses.TOKEN_CROSS_ENTROPY, (3, 3), TOKENS),
        (losses.CAUSAL_CROSS_ENTROPY, (3, 3), TOKENS),
        (losses.ANSWER_CROSS_ENTROPY, (2, 5), torch.tensor([[0, 1], [4, 9], [2, 2], [3, 4]])),
        (losses.ITS_OUTPUT, (1,), torch.zeros(4)),
        (from_user(margin), (3,), CLASSES),
        (from_user(straight), (3,), CLASSES),
    ],
    ids=lambda value: "",
)
def test_every_row_has_its_own_gradient_and_hessian(loss: ExampleLoss, shape: tuple[int, ...], labels: torch.Tensor):
    """As row by row they are, by torch's own transforms."""
    torch.manual_seed(0)
    logits = torch.randn(4, *shape)
    batch = Batch({}, labels, {"weights": torch.rand(4)})
    width = logits[0].numel()
    slopes = vmap(grad(loss.one))(logits, labels, batch.given)
    curved = vmap(hessian(loss.one))(logits, labels, batch.given).reshape(4, width, width)
    with torch.no_grad():
        found, second = loss.logit_gradients(logits, batch), loss.logit_hessians(logits, batch)
    assert slopes.abs().sum() > 0
    torch.testing.assert_close(found, slopes)
    torch.testing.assert_close(second, curved)
    assert not found.requires_grad
    assert not second.requires_grad


def test_a_loss_of_labels_alone_has_no_slope():
    loss, batch = from_user(lambda logits, labels: labels.float()), Batch({}, torch.ones(4))
    assert not loss.logit_gradients(torch.randn(4, 3), batch).any()
    assert not loss.logit_hessians(torch.randn(4, 3), batch).any()
