"""Every adjoint is the derivative of torch's own optimizer, and the check sees one that is not."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from hf_prune.optimizers import adam, sgd
from hf_prune.testing import check_adjoint

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD, weight decay": partial(torch.optim.SGD, lr=0.1, weight_decay=0.3),
    "SGD, momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "SGD, momentum, dampening, weight decay": partial(
        torch.optim.SGD, lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.3
    ),
    "SGD, Nesterov, weight decay": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.3),
    "Adam": torch.optim.Adam,
    "Adam, weight decay": partial(torch.optim.Adam, weight_decay=0.3, betas=(0.7, 0.9)),
    "Adam, decoupled weight decay": partial(torch.optim.Adam, weight_decay=0.3, decoupled_weight_decay=True),
    "AdamW": partial(torch.optim.AdamW, weight_decay=0.3, eps=1e-3),
    "AdamW, amsgrad": partial(torch.optim.AdamW, amsgrad=True, betas=(0.9, 0.5), weight_decay=0.3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_adjoint_is_the_derivative_of_torchs_optimizer(name: str):
    check_adjoint(OPTIMIZERS[name])


@pytest.mark.parametrize("kind", [sgd.Sgd, adam.Adam])
@pytest.mark.parametrize("method", ["step_adjoint_", "decay_adjoint_"])
def test_an_adjoint_with_a_wrong_sign_is_seen(monkeypatch: pytest.MonkeyPatch, kind: type, method: str):
    right = getattr(kind, method)

    def wrong(self: Any, A: torch.Tensor, *rest: Any) -> Any:
        if method == "step_adjoint_":
            return -right(self, A, *rest)
        before = A.clone()
        right(self, A, *rest)
        return A.copy_(2 * before - A)

    monkeypatch.setattr(kind, method, wrong)
    name = "SGD, momentum, dampening, weight decay" if kind is sgd.Sgd else "AdamW"
    with pytest.raises(AssertionError, match=r"is not its derivative: at step \d of 8"):
        check_adjoint(OPTIMIZERS[name])
