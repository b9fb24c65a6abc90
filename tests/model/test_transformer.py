"""Properties of the decoder. test_huggingface compares it with Hugging Face transformers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.batch import row_positions
from model.heads import ScalarModel
from model.transformer import Transformer, attend, document_mask, initialize
from model.transformer_config import TransformerConfig, flop_per_token, num_parameters

CONFIG = TransformerConfig(
    vocab_size=50, width=24, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=40, max_length=32
)


def make_model(config: TransformerConfig = CONFIG) -> Transformer:
    model = Transformer(config)
    initialize(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    return model


def test_packed_documents_give_the_same_hidden_states_as_separate_documents() -> None:
    model = make_model()
    lengths = [5, 1, 7, 3]
    documents = [torch.randint(0, 50, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    ids = torch.cat(documents)[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    # The last document is padding. It must not change the other documents, and must stay finite.
    document_ids = torch.repeat_interleave(torch.tensor([4, 0, 4 + 1, -1]), torch.tensor(lengths))[None]
    packed = model(ids, positions, document_ids)[0].split(lengths)
    for document, hidden in zip(documents, packed, strict=True):
        alone = model(document[None], row_positions(document[None]))[0]
        torch.testing.assert_close(hidden, alone, atol=5e-5, rtol=1e-5)


def test_a_token_does_not_depend_on_later_tokens() -> None:
    model = make_model()
    ids = torch.randint(0, 50, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 50
    for document_ids in (None, torch.zeros_like(ids)):
        before = model(ids, row_positions(ids), document_ids)
        after = model(changed, row_positions(ids), document_ids)
        torch.testing.assert_close(before[:, :7], after[:, :7], atol=0, rtol=0)
        assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("is_masked", [True, False])
def test_cpu_bfloat16_attention_equals_float32_attention_within_rounding(num_kv_heads: int, is_masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def random_heads(heads: int) -> torch.Tensor:
        return torch.randn(3, heads, 16, 8, generator=generator).bfloat16().requires_grad_()

    query, key, value = random_heads(4), random_heads(num_kv_heads), random_heads(num_kv_heads)
    mask = document_mask((torch.arange(16) // 5).expand(3, 16)) if is_masked else None
    bfloat16_output = attend(query, key, value, mask)
    gradients = torch.autograd.grad(bfloat16_output.float().square().sum(), (query, key, value))
    float32_inputs = [x.detach().float().requires_grad_() for x in (query, key, value)]
    float32_output = attend(*float32_inputs, mask)
    float32_gradients = torch.autograd.grad(float32_output.square().sum(), float32_inputs)
    torch.testing.assert_close(bfloat16_output.float(), float32_output, atol=0.03, rtol=0.03)
    for gradient, float32_gradient in zip(gradients, float32_gradients, strict=True):
        torch.testing.assert_close(gradient.float(), float32_gradient, atol=0.15, rtol=0.05)


def test_initial_parameters_depend_only_on_seed_and_name() -> None:
    small, deep = Transformer(CONFIG), Transformer(dataclasses.replace(CONFIG, num_layers=3))
    torch.manual_seed(1)
    initialize(small, seed=7)
    torch.manual_seed(2)
    initialize(deep, seed=7)
    shared = small.layers[1].attention.query.weight
    assert torch.equal(shared, deep.layers[1].attention.query.weight)
    assert not torch.equal(shared, small.layers[0].attention.query.weight)
    other_seed = Transformer(CONFIG)
    initialize(other_seed, seed=8)
    assert not torch.equal(shared, other_seed.layers[1].attention.query.weight)
    assert shared.std().item() == pytest.approx(0.02, rel=0.1)
    # Two layers: 0.02 / sqrt(4).
    assert small.layers[1].ffn.down.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert (small.layers[0].ffn_norm.weight == 1).all()


def test_scalar_head_starts_at_zero_for_every_token() -> None:
    model = ScalarModel(CONFIG)
    initialize(model, seed=0)
    ids = torch.randint(0, 50, (2, 9))
    assert torch.equal(model(ids, row_positions(ids)), torch.zeros(2, 9))


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_num_parameters_equals_the_parameters_of_the_module(tie_embeddings: bool) -> None:
    config = dataclasses.replace(CONFIG, tie_embeddings=tie_embeddings)
    assert num_parameters(config) == sum(p.numel() for p in Transformer(config).parameters())


def test_flop_per_token_is_six_per_matmul_parameter_and_attention() -> None:
    # Each layer has query and output 24·24, key and value 24·12, and three feed-forward matrices 24·40. The lm_head has
    # 50·24.
    matmul = 2 * (2 * 576 + 2 * 288 + 3 * 960) + 1200
    assert flop_per_token(CONFIG, 16) == 6 * matmul + 12 * 2 * 24 * 16
    untied = dataclasses.replace(CONFIG, tie_embeddings=False)
    assert flop_per_token(untied, 16) == flop_per_token(CONFIG, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "width=24 must be a multiple of num_heads=5"),
        ({"num_heads": 8}, "must be even"),
        ({"num_kv_heads": 3}, "num_heads=4 must be a multiple of num_kv_heads=3"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"norm_eps": 0.0}, "must be above 0"),
    ],
)
def test_sizes_that_do_not_fit_together_are_rejected(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change).check()
