"""Reads and writes Llama-family models as Hugging Face folders, for transformers and vLLM.

A folder holds config.json, the weights as safetensors (one file or several with an index) and the tokenizer's
files. `LlamaForCausalLM` is our `Transformer`, `LlamaForSequenceClassification` with one label our `ScalarHead`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.heads import ScalarHead
from model.huggingface_config import TOKENIZER_FILES, SpecialTokens, hf_config, read_config
from model.parallel import full_tensors
from model.transformer import Transformer
from model.transformer_config import TransformerConfig

NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "layers.#.attention_norm.weight": "model.layers.#.input_layernorm.weight",
    "layers.#.attention.query.weight": "model.layers.#.self_attn.q_proj.weight",
    "layers.#.attention.key.weight": "model.layers.#.self_attn.k_proj.weight",
    "layers.#.attention.value.weight": "model.layers.#.self_attn.v_proj.weight",
    "layers.#.attention.output.weight": "model.layers.#.self_attn.o_proj.weight",
    "layers.#.ffn_norm.weight": "model.layers.#.post_attention_layernorm.weight",
    "layers.#.ffn.gate.weight": "model.layers.#.mlp.gate_proj.weight",
    "layers.#.ffn.up.weight": "model.layers.#.mlp.up_proj.weight",
    "layers.#.ffn.down.weight": "model.layers.#.mlp.down_proj.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "score.weight": "score.weight",
}
"""Hugging Face's parameter names by ours; # is the layer's number."""


def hf_name(name: str) -> str:
    """The Hugging Face name of a parameter of a `Transformer` or `ScalarHead`."""
    return _translate(name.removeprefix("transformer."), NAMES)


def hf_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters under their Hugging Face names, one at a time, on every rank: call it on all ranks together.

    These are what an inference engine is sent. A tied head is not repeated.
    """
    for name, tensor in full_tensors(model):
        yield hf_name(name), tensor


def save_hf_model(
    folder: Path,
    state: Mapping[str, Tensor],
    config: TransformerConfig,
    *,
    special_tokens: SpecialTokens,
    tokenizer_folder: Path | None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a Hugging Face folder from a whole state (`parallel.full_state_dict`), on one rank.

    A state with a score becomes a `LlamaForSequenceClassification`. config.json is written last, so a folder
    without it is not whole. The tokenizer's files are copied from `tokenizer_folder`, if given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    if tokenizer_folder is not None:
        _copy_tokenizer(tokenizer_folder, folder)
    tensors = {hf_name(name): tensor.to(dtype).contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    is_scalar = "score.weight" in tensors
    generation = {"bos_token_id": special_tokens.bos, "eos_token_id": special_tokens.eos}
    if not is_scalar:
        _write_json(folder / "generation_config.json", {**generation, "pad_token_id": special_tokens.pad})
    _write_json(folder / "config.json", hf_config(config, special_tokens, is_scalar=is_scalar, dtype=dtype))


def load_hf_model(folder: Path) -> Transformer:
    """The language model in a folder, float32 on CPU, exactly as `LlamaForCausalLM` computes it."""
    model = Transformer(read_config(folder))
    _load(model, _our_tensors(folder), folder)
    return model


def load_hf_scalar_model(folder: Path) -> ScalarHead:
    """The scalar model in a folder, float32 on CPU.

    From a language model's folder it takes the decoder, with a score of zero; a reward model's or critic's folder has a
    score of its own.
    """
    model = ScalarHead(read_config(folder))
    tensors = {name: tensor for name, tensor in _our_tensors(folder) if name != "head.weight"}
    tensors.setdefault("score.weight", torch.zeros_like(model.score.weight))
    _load(model, ((_inside_scalar(name), tensor) for name, tensor in tensors.items()), folder)
    return model


def _inside_scalar(name: str) -> str:
    return name if name == "score.weight" else f"transformer.{name}"


def _our_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder's safetensors under our name, float32."""
    to_ours = {theirs: ours for ours, theirs in NAMES.items()}
    for path in _weight_files(folder):
        for name, tensor in load_file(path).items():
            yield _translate(name, to_ours), tensor.float()


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ValueError(f"{folder} has neither {single.name} nor {index.name}: convert its weights to safetensors")
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _load(model: nn.Module, tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Fill every parameter of the model. Raises ValueError for tensors that are missing, unknown or misshapen."""
    state = dict(tensors)
    expected = model.state_dict()
    if "embedding.weight" in expected and "head.weight" not in expected:
        state.pop("head.weight", None)  # some exporters repeat a tied head
    problems = [f"missing {name}" for name in expected.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, config.json says {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"{folder}: the weights do not belong to its config.json: {'; '.join(sorted(problems)[:5])}")
    model.load_state_dict(state)


def _translate(name: str, table: Mapping[str, str]) -> str:
    layer = re.search(r"layers\.(\d+)\.", name)
    pattern = name if layer is None else name.replace(layer[0], "layers.#.", 1)
    if pattern not in table:
        raise ValueError(f"parameter {name} is not one of a Llama decoder")
    return table[pattern] if layer is None else table[pattern].replace("#", layer[1])


def _copy_tokenizer(source: Path, folder: Path) -> None:
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not names:
        raise ValueError(f"{source} has no tokenizer files: expected at least tokenizer.json")
    for name in names:
        if (source / name).resolve() != (folder / name).resolve():
            shutil.copyfile(source / name, folder / name)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
