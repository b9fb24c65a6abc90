"""The generator: a real vLLM engine inside an actor, sampling whole lots under known weights."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from actors.rollout import Lot, PromptTask, Rollout, RolloutGroup, Sampling, request_seed
from actors.settings import whole_prompts
from actors.vllm_plugin import register
from actors.weights import OBJECT_STORE, Backend, LoadReport, Publication, StaleWeightsError
from cluster.storage import Storage
from model.precision import ComputePrecision

log = logging.getLogger(__name__)

_VOCABULARY_PADDING = 64
"""vLLM pads embedding tables to this many rows; a padded table has another checksum than ours."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What an engine is made with."""

    model: Storage
    """Hugging Face folder."""
    max_length: int
    """Longest prompt and response together, in tokens."""
    max_sequences: int
    """Sequences decoded side by side: those of one lot, so that a lot is one batch."""
    precision: ComputePrecision = "float32"
    kv_cache_gib: float = 0.5
    """On CPU."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory that weights, activations and cache take together."""
    transfer: Backend = OBJECT_STORE
    is_cuda: bool = False


def engine_env() -> dict[str, str]:
    """What the environment of an engine's process must say before vllm is imported."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the actor's process and dies with it
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines and the learner share the cores
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


class Generator:
    """One engine.

    consumes: lots (prompts with the weight version they want) and publications of weights;
    waits for: nothing, each call runs to its end;
    produces: rollout groups in the order of the lot's prompts, each rollout with the version that made it.
    """

    def __init__(self, settings: EngineSettings) -> None:
        import vllm  # late: only an engine's process pays for it

        register()
        self._settings = settings
        device: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_memory_utilization}
        if not settings.is_cuda:
            cache_bytes = int(settings.kv_cache_gib * 2**30)
            device = {"distributed_executor_backend": "uni", "kv_cache_memory_bytes": cache_bytes}
        self._llm = vllm.LLM(
            model=str(settings.model.local()),
            dtype=settings.precision,
            max_model_len=settings.max_length,
            max_num_seqs=settings.max_sequences,
            enable_chunked_prefill=False,
            max_num_batched_tokens=whole_prompts(settings.max_length, settings.max_sequences),
            enforce_eager=not settings.is_cuda,
            enable_prefix_caching=False,  # its hits depend on what ran before, so would the last bits
            logprobs_mode="processed_logprobs",  # the default ignores the temperature
            weight_transfer_config={"backend": settings.transfer},
            disable_log_stats=True,
            seed=0,
            **device,
        )
        self._assert_transfer_engine()
        self._warm_up()

    def load(self, publication: Publication) -> LoadReport:
        """Take the publication's weights and say what the engine then holds."""
        if publication.chunks:
            self._llm.start_weight_update()
            self._llm.update_weights({"update_info": {"chunks": publication.chunks}})
            self._llm.finish_weight_update(str(publication.version))
        return LoadReport(int(self._llm.get_weight_version()), self._checksums())

    def generate(self, lot: Lot) -> list[RolloutGroup]:
        """The lot's rollouts, sampled in one batch; the same lot gives the same tokens from any idle engine.

        Raises StaleWeightsError when the engine holds other weights than the lot asks for.
        """
        held = self._llm.get_weight_version()
        if held != str(lot.weight_version):
            raise StaleWeightsError(
                f"stale weights: a lot asks for version {lot.weight_version}, the engine holds {held}"
            )
        requests = [(task, sample) for task in lot.tasks for sample in range(task.num_samples)]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(task.prompt_ids)} for task, _ in requests],
            [self._sampling_params(lot, task, sample) for task, sample in requests],
            use_tqdm=False,
        )
        rollouts = iter([_rollout(output) for output in outputs])
        return [RolloutGroup(task.index, tuple(next(rollouts) for _ in range(task.num_samples))) for task in lot.tasks]

    def set_weight_version(self, version: int) -> None:
        """Name the weights that a trainer engine (nccl, ipc) has just sent."""
        self._llm.update_weight_version(str(version))

    # The names that vLLM's RayVLLMWeightSyncClient calls.

    def init_weight_transfer_engine(self, request: Any) -> None:
        self._llm.init_weight_transfer_engine(request)

    def start_weight_update(self) -> None:
        self._llm.start_weight_update()

    def update_weights(self, request: Any) -> None:
        self._llm.update_weights(request)

    def finish_weight_update(self) -> None:
        self._llm.finish_weight_update()

    def pid(self) -> int:
        """The process to kill in a test of failures."""
        return os.getpid()

    def _sampling_params(self, lot: Lot, task: PromptTask, sample: int) -> Any:
        import vllm

        sampling = lot.sampling
        return vllm.SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=list(sampling.stop_ids),
            ignore_eos=True,  # stop_ids say all; the engine's own idea of an end must not add to it
            seed=request_seed(sampling.seed, lot.step, task.index, sample),
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
        )

    def _checksums(self) -> dict[str, str]:
        (checksums,) = self._llm.collective_rpc("compute_weight_checksums")
        by_name = {name.rsplit(":", 1)[-1]: digest for name, digest in checksums.items()}
        if self._llm.model_config.get_vocab_size() % _VOCABULARY_PADDING:
            by_name = {n: d for n, d in by_name.items() if n not in ("model.embed_tokens.weight", "lm_head.weight")}
        return {name: digest for name, digest in by_name.items() if digest != _EMPTY_DIGEST}

    def _assert_transfer_engine(self) -> None:
        """Our engine must be the one in the engine's process, not one that another plugin put in its place."""
        if self._settings.transfer != OBJECT_STORE:
            return
        from actors.transfer_engine import ObjectStoreEngine

        (engine,) = self._llm.collective_rpc(lambda worker: type(worker.weight_transfer_engine))
        assert engine is ObjectStoreEngine, f"the engine's weight transfer is {engine}, not Raymill's"

    def _warm_up(self) -> None:
        """The first call compiles and allocates; pay for it before the first step is timed."""
        self._llm.update_weight_version("0")
        task = PromptTask(0, (0,), min(4, self._settings.max_sequences))
        self.generate(Lot(0, 0, (task,), Sampling(temperature=1.0, max_new_tokens=4, stop_ids=(), seed=0)))
        self._llm.update_weight_version("-1")


_EMPTY_DIGEST = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""sha256 of nothing: on CPU a packed weight is an emptied parameter."""


def _rollout(output: Any) -> Rollout:
    (completion,) = output.outputs
    versions = completion.weight_versions
    assert versions, "vLLM did not say which weights made the rollout"
    return Rollout(
        prompt_ids=tuple(output.prompt_token_ids),
        response_ids=tuple(completion.token_ids),
        logprobs=tuple(completion.logprobs.logprobs),
        weight_version=int(versions[0].version) if len(versions) == 1 else -1,
        finished=completion.finish_reason == "stop",
    )
