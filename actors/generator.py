"""The generator: a Ray actor around a vLLM engine. It samples the completions of generation batches.

verl calls this the rollout worker.
"""

from __future__ import annotations

from typing import Any

from actors.engine import OBJECT_STORE, EngineSettings, max_batched_tokens
from actors.rollout import GenerationBatch, PromptRequest, Rollout, RolloutGroup, SamplingParams, completion_seed
from actors.vllm_plugin import register
from actors.weight_sync import LoadReport, StaleWeightsError, WeightSnapshot

_VOCABULARY_PADDING = 64
"""vLLM pads embedding tables to a multiple of this number of rows. A padded table has another checksum than the
table in the weight snapshot."""


class Generator:
    """A vLLM engine that loads weight snapshots and completes generation batches.

    A generation batch names the weight version from which its completions must be sampled, and each rollout reports
    the version from which it was sampled. The rollout groups are in the order of the prompts. The generator waits for
    no other actor.
    """

    def __init__(self, settings: EngineSettings) -> None:
        import vllm  # imported here, because importing vllm is slow and only the engine's process needs it

        register()
        self._settings = settings
        device_options: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_memory_utilization}
        if not settings.is_cuda:
            cache_bytes = int(settings.kv_cache_gib * 2**30)
            device_options = {"distributed_executor_backend": "uni", "kv_cache_memory_bytes": cache_bytes}
        self._llm = vllm.LLM(
            model=str(settings.model.local()),
            dtype=settings.precision,
            max_model_len=settings.max_length,
            max_num_seqs=settings.max_sequences,
            enable_chunked_prefill=False,
            max_num_batched_tokens=max_batched_tokens(settings.max_length, settings.max_sequences),
            enforce_eager=not settings.is_cuda,
            # With prefix caching, the rounding of a result would depend on which requests ran before.
            enable_prefix_caching=False,
            # The default reports logprobs that are not divided by the temperature.
            logprobs_mode="processed_logprobs",
            weight_transfer_config={"backend": settings.weight_transfer},
            disable_log_stats=True,
            seed=0,
            **device_options,
        )
        self._assert_transfer_engine()
        self._warm_up()

    def load(self, snapshot: WeightSnapshot) -> LoadReport:
        """Load the snapshot's weights. Returns the weight version and the checksums that the engine has afterwards."""
        if snapshot.chunks:  # with nccl and ipc there are no chunks, because the engine has the weights already
            self._llm.start_weight_update()
            self._llm.update_weights({"update_info": {"chunks": snapshot.chunks}})
            self._llm.finish_weight_update(str(snapshot.version))
        if snapshot.is_in_folder:
            self._llm.update_weight_version(str(snapshot.version))
        return LoadReport(int(self._llm.get_weight_version()), self._checksums())

    def generate(self, batch: GenerationBatch) -> list[RolloutGroup]:
        """Sample the completions of a generation batch. The same batch has the same completions on any generator.

        Raises StaleWeightsError when the engine has another weight version than the batch requires.
        """
        version = self._llm.get_weight_version()
        if version != str(batch.weight_version):
            raise StaleWeightsError(
                f"stale weights: a generation batch requires weight version {batch.weight_version}, "
                f"but the engine has version {version}"
            )
        samples = [(request, sample) for request in batch.requests for sample in range(request.num_samples)]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(request.prompt_ids)} for request, _ in samples],
            [_vllm_sampling_params(batch, request, sample) for request, sample in samples],
            use_tqdm=False,
        )
        rollouts = iter([_to_rollout(output) for output in outputs])
        return [
            RolloutGroup(request.index, tuple(next(rollouts) for _ in range(request.num_samples)))
            for request in batch.requests
        ]

    def set_weight_version(self, version: int) -> None:
        """Set the engine's weight version. Called after vLLM's weight transfer (nccl or ipc) has sent the
        weights to this engine."""
        self._llm.update_weight_version(str(version))

    # vLLM's RayVLLMWeightSyncClient calls the next four methods by these names.

    def init_weight_transfer_engine(self, request: Any) -> None:
        self._llm.init_weight_transfer_engine(request)

    def start_weight_update(self) -> None:
        self._llm.start_weight_update()

    def update_weights(self, request: Any) -> None:
        self._llm.update_weights(request)

    def finish_weight_update(self) -> None:
        self._llm.finish_weight_update()

    def _checksums(self) -> dict[str, str]:
        """Return the checksums of the engine's parameters by name, without padded and empty parameters."""
        (checksums,) = self._llm.collective_rpc("compute_weight_checksums")
        # vLLM puts the ranks of the worker and a colon before each parameter's name.
        by_name = {name.rsplit(":", 1)[-1]: checksum for name, checksum in checksums.items()}
        if self._llm.model_config.get_vocab_size() % _VOCABULARY_PADDING:
            by_name = {n: c for n, c in by_name.items() if n not in ("model.embed_tokens.weight", "lm_head.weight")}
        return {name: checksum for name, checksum in by_name.items() if checksum != _EMPTY_CHECKSUM}

    def _assert_transfer_engine(self) -> None:
        """Fail if another vLLM plugin has registered its own transfer engine under the name that Raymill's uses."""
        if self._settings.weight_transfer != OBJECT_STORE:
            return
        from actors.transfer_engine import ObjectStoreEngine

        (engine,) = self._llm.collective_rpc(lambda worker: type(worker.weight_transfer_engine))
        assert engine is ObjectStoreEngine, f"the weight transfer engine is {engine}; it must be {ObjectStoreEngine}"

    def _warm_up(self) -> None:
        """Generate once, so that compilation and memory allocation do not slow down the first RLHF step.

        After this method, the engine has weight version -1, which no generation batch requires.
        """
        self._llm.update_weight_version("0")
        request = PromptRequest(0, (0,), min(4, self._settings.max_sequences))
        sampling = SamplingParams(temperature=1.0, max_new_tokens=4, stop_ids=(), seed=0)
        self.generate(GenerationBatch(0, 0, (request,), sampling))
        self._llm.update_weight_version("-1")


_EMPTY_CHECKSUM = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""The sha256 of zero bytes. On CPU, vLLM packs weights into another buffer and leaves an empty parameter."""


def _to_rollout(output: Any) -> Rollout:
    """Convert vLLM's output for one request into a rollout."""
    (completion,) = output.outputs
    versions = completion.weight_versions  # one item for each weight version that the engine had during sampling
    assert versions, "vLLM did not report the weight version of a completion"
    return Rollout(
        prompt_ids=tuple(output.prompt_token_ids),
        completion_ids=tuple(completion.token_ids),
        logprobs=tuple(completion.logprobs.logprobs),
        weight_version=int(versions[0].version) if len(versions) == 1 else -1,
        finished=completion.finish_reason == "stop",
    )


def _vllm_sampling_params(batch: GenerationBatch, request: PromptRequest, sample: int) -> Any:
    """Return vLLM's sampling parameters for one completion of a prompt. `sample` is the index of the completion."""
    import vllm

    sampling = batch.sampling
    return vllm.SamplingParams(
        temperature=sampling.temperature,
        max_tokens=sampling.max_new_tokens,
        stop_token_ids=list(sampling.stop_ids),
        ignore_eos=True,  # only stop_ids end a completion, not the end token that vLLM reads from the model folder
        seed=completion_seed(sampling.seed, batch.step, request.index, sample),
        logprobs=0,  # return the logprob of the sampled token, and of no other token
        flat_logprobs=True,
        detokenize=False,
    )
