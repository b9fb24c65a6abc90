"""`linear_cross_entropy`, compared with PyTorch's cross entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model import cross_entropy
from model.cross_entropy import linear_cross_entropy


def random_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator).requires_grad_()
    weight = torch.randn(11, 8, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(0, 11, (23,), generator=generator)


@pytest.mark.parametrize("chunk_positions", [5, 23, 1024])
def test_loss_and_gradients_equal_those_of_pytorch(monkeypatch: pytest.MonkeyPatch, chunk_positions: int) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_POSITIONS", chunk_positions)
    hidden, weight, targets = random_inputs()
    loss_sum = linear_cross_entropy(hidden, weight, targets)
    reference = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")
    torch.testing.assert_close(loss_sum, reference)
    # A factor on the loss multiplies both gradients.
    gradients = torch.autograd.grad(3 * loss_sum, (hidden, weight))
    for got, expected in zip(gradients, torch.autograd.grad(3 * reference, (hidden, weight)), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_under_autocast_only_the_matmuls_are_in_bfloat16() -> None:
    hidden, weight, targets = random_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        loss_sum = linear_cross_entropy(hidden, weight, targets)
    logits = F.linear(hidden.bfloat16(), weight.bfloat16()).float()
    torch.testing.assert_close(loss_sum, F.cross_entropy(logits, targets, reduction="sum"))
    hidden_grad, weight_grad = torch.autograd.grad(loss_sum, (hidden, weight))
    assert hidden_grad.dtype == weight_grad.dtype == torch.float32


def test_no_targets_give_zero_loss_and_zero_gradients() -> None:
    hidden, weight, targets = random_inputs()
    loss = linear_cross_entropy(hidden[:0], weight, targets[:0])
    assert loss.item() == 0
    hidden_grad, weight_grad = torch.autograd.grad(loss, (hidden, weight))
    assert not hidden_grad.any() and not weight_grad.any()


def test_without_gradients_the_loss_is_the_same() -> None:
    hidden, weight, targets = random_inputs()
    with torch.no_grad():
        without = linear_cross_entropy(hidden, weight, targets)
    assert not without.requires_grad
    assert without.item() == linear_cross_entropy(hidden, weight, targets).item()
