"""Reads and writes Llama-family models as Hugging Face model folders, which transformers and vLLM load.

A folder contains config.json, the weights as safetensors (one file, or several files with an index) and the files of
the tokenizer. Raymill's `Transformer` corresponds to `LlamaForCausalLM`, and its `ScalarModel` to
`LlamaForSequenceClassification` with one label.
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

from model.heads import ScalarModel
from model.huggingface_config import TOKENIZER_FILES, SpecialTokens, hf_config, read_config
from model.parallel import full_tensors
from model.transformer import Transformer
from model.transformer_config import TransformerConfig

HF_NAMES = {
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
"""Hugging Face's parameter names by Raymill's parameter names. # stands for the index of the layer."""


def hf_name(name: str) -> str:
    """Return the Hugging Face name of a parameter of a `Transformer` or `ScalarModel`."""
    return _rename(name.removeprefix("transformer."), HF_NAMES)


def hf_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the Hugging Face name and the unsharded value of each parameter, one at a time, on every rank.

    This function is collective: all ranks must call it. In RLHF the weights are sent to vLLM under these names. The
    weight of a tied lm_head is yielded once, as the embedding.
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
    """Write a Hugging Face model folder. Call it on one rank, with the result of `parallel.full_state_dict`.

    A state dict of a `ScalarModel` becomes a `LlamaForSequenceClassification`. config.json is written last, so a folder
    without config.json is not complete. The files of the tokenizer are copied from `tokenizer_folder` if it is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    if tokenizer_folder is not None:
        _copy_tokenizer(tokenizer_folder, folder)
    tensors = {hf_name(name): tensor.to(dtype).contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    is_scalar = "score.weight" in tensors
    generation_config = {"bos_token_id": special_tokens.bos, "eos_token_id": special_tokens.eos}
    if not is_scalar:
        _write_json(folder / "generation_config.json", {**generation_config, "pad_token_id": special_tokens.pad})
    _write_json(folder / "config.json", hf_config(config, special_tokens, is_scalar=is_scalar, dtype=dtype))


def load_hf_model(folder: Path) -> Transformer:
    """Load the language model of a Hugging Face model folder, in float32 on the CPU."""
    model = Transformer(read_config(folder))
    _load_parameters(model, _read_tensors(folder), folder)
    return model


def load_hf_scalar_model(folder: Path) -> ScalarModel:
    """Load a `ScalarModel` from a Hugging Face model folder, in float32 on the CPU.

    If the folder has a reward model or a critic, its scalar head is loaded too. If it has a language model, the decoder
    is loaded and the weight of the scalar head is 0.
    """
    model = ScalarModel(read_config(folder))
    tensors = {name: tensor for name, tensor in _read_tensors(folder) if name != "head.weight"}
    tensors.setdefault("score.weight", torch.zeros_like(model.score.weight))
    _load_parameters(model, ((_scalar_model_parameter_name(name), tensor) for name, tensor in tensors.items()), folder)
    return model


def _scalar_model_parameter_name(name: str) -> str:
    """Return the name in a `ScalarModel` of a parameter that has this name in a `Transformer`, or of `score.weight`."""
    return name if name == "score.weight" else f"transformer.{name}"


def _read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield Raymill's name and the float32 value of every tensor in the folder's weight files."""
    raymill_names = {hf: raymill for raymill, hf in HF_NAMES.items()}
    for path in _weight_files(folder):
        for name, tensor in load_file(path).items():
            yield _rename(name, raymill_names), tensor.float()


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ValueError(f"{folder} has neither {single.name} nor {index.name}: convert the weights to safetensors")
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _load_parameters(model: nn.Module, tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Set every parameter of the model. Raises ValueError for a tensor that is missing, unexpected or misshapen."""
    state = dict(tensors)
    expected = model.state_dict()
    if "embedding.weight" in expected and "head.weight" not in expected:
        state.pop("head.weight", None)  # some exporters store the weight of a tied lm_head a second time
    problems = [f"missing {name}" for name in expected.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, but by config.json it must have {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"{folder}: the weights do not match config.json: {'; '.join(sorted(problems)[:5])}")
    model.load_state_dict(state)


def _rename(name: str, new_names: Mapping[str, str]) -> str:
    """Return the new name of a parameter by the table `new_names`, in which # stands for the index of a layer."""
    layer = re.search(r"layers\.(\d+)\.", name)
    pattern = name if layer is None else name.replace(layer[0], "layers.#.", 1)
    if pattern not in new_names:
        raise ValueError(f"a Llama decoder has no parameter {name}")
    return new_names[pattern] if layer is None else new_names[pattern].replace("#", layer[1])


def _copy_tokenizer(source: Path, folder: Path) -> None:
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not names:
        raise ValueError(f"{source} has no tokenizer files: it must have at least tokenizer.json")
    for name in names:
        if (source / name).resolve() != (folder / name).resolve():
            shutil.copyfile(source / name, folder / name)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
