"""The generator: a vLLM engine inside an actor, which samples whole generation batches from known weights."""

from __future__ import annotations

from typing import Any

from actors.engine import OBJECT_STORE, EngineSettings, max_prefill_tokens
from actors.rollout import GenerationBatch, PromptRequest, Rollout, RolloutGroup, SamplingParams, request_seed
from actors.vllm_plugin import register
from actors.weight_sync import LoadReport, StaleWeightsError, WeightSnapshot

_VOCABULARY_PADDING = 64
"""vLLM pads embedding tables to a multiple of this; a padded table has another checksum than ours."""


class Generator:
    """One engine.

    consumes: generation batches (prompts and the weight version to sample from) and weight snapshots;
    waits for: nothing, each call runs to its end;
    produces: rollout groups in the order of the prompts, each rollout with the version that it was sampled from.
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
            max_num_batched_tokens=max_prefill_tokens(settings.max_length, settings.max_sequences),
            enforce_eager=not settings.is_cuda,
            enable_prefix_caching=False,  # its hits depend on what ran before, so would the last bits
            logprobs_mode="processed_logprobs",  # the default ignores the temperature
            weight_transfer_config={"backend": settings.weight_transfer},
            disable_log_stats=True,
            seed=0,
            **device,
        )
        self._assert_transfer_engine()
        self._warm_up()

    def load(self, snapshot: WeightSnapshot) -> LoadReport:
        """Load the snapshot's weights and report what the engine then holds."""
        if snapshot.chunks:
            self._llm.start_weight_update()
            self._llm.update_weights({"update_info": {"chunks": snapshot.chunks}})
            self._llm.finish_weight_update(str(snapshot.version))
        return LoadReport(int(self._llm.get_weight_version()), self._checksums())

    def generate(self, batch: GenerationBatch) -> list[RolloutGroup]:
        """The rollouts of a generation batch; the same batch gives the same tokens from any idle engine.

        Raises StaleWeightsError when the engine holds other weights than the batch asks for.
        """
        version = self._llm.get_weight_version()
        if version != str(batch.weight_version):
            raise StaleWeightsError(
                f"stale weights: a generation batch asks for version {batch.weight_version}, the engine holds {version}"
            )
        requests = [(task, sample) for task in batch.tasks for sample in range(task.num_samples)]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(task.prompt_ids)} for task, _ in requests],
            [_sampling_params(batch, task, sample) for task, sample in requests],
            use_tqdm=False,
        )
        rollouts = iter([_rollout(output) for output in outputs])
        return [
            RolloutGroup(task.index, tuple(next(rollouts) for _ in range(task.num_samples))) for task in batch.tasks
        ]

    def set_weight_version(self, version: int) -> None:
        """Set the version of the weights that a trainer engine (nccl, ipc) has just sent."""
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

    def _checksums(self) -> dict[str, str]:
        (checksums,) = self._llm.collective_rpc("compute_weight_checksums")
        by_name = {name.rsplit(":", 1)[-1]: digest for name, digest in checksums.items()}
        if self._llm.model_config.get_vocab_size() % _VOCABULARY_PADDING:
            by_name = {n: d for n, d in by_name.items() if n not in ("model.embed_tokens.weight", "lm_head.weight")}
        return {name: digest for name, digest in by_name.items() if digest != _EMPTY_DIGEST}

    def _assert_transfer_engine(self) -> None:
        """Refuse a transfer engine that another plugin has registered under our name."""
        if self._settings.weight_transfer != OBJECT_STORE:
            return
        from actors.transfer_engine import ObjectStoreEngine

        (engine,) = self._llm.collective_rpc(lambda worker: type(worker.weight_transfer_engine))
        assert engine is ObjectStoreEngine, f"the engine's weight transfer is {engine}, not Raymill's"

    def _warm_up(self) -> None:
        """Generate once, so that compilation and allocation are over before the first step is timed."""
        self._llm.update_weight_version("0")
        task = PromptRequest(0, (0,), min(4, self._settings.max_sequences))
        sampling = SamplingParams(temperature=1.0, max_new_tokens=4, stop_ids=(), seed=0)
        self.generate(GenerationBatch(0, 0, (task,), sampling))
        self._llm.update_weight_version("-1")


_EMPTY_DIGEST = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""sha256 of nothing: on CPU a packed weight is an emptied parameter."""


def _rollout(output: Any) -> Rollout:
    (completion,) = output.outputs
    versions = completion.weight_versions
    assert versions, "vLLM did not report which weights made the rollout"
    return Rollout(
        prompt_ids=tuple(output.prompt_token_ids),
        completion_ids=tuple(completion.token_ids),
        logprobs=tuple(completion.logprobs.logprobs),
        weight_version=int(versions[0].version) if len(versions) == 1 else -1,
        finished=completion.finish_reason == "stop",
    )


def _sampling_params(batch: GenerationBatch, task: PromptRequest, sample: int) -> Any:
    import vllm

    sampling = batch.sampling
    return vllm.SamplingParams(
        temperature=sampling.temperature,
        max_tokens=sampling.max_new_tokens,
        stop_token_ids=list(sampling.stop_ids),
        ignore_eos=True,  # stop_ids are complete; the engine's own end token must not add to them
        seed=request_seed(sampling.seed, batch.step, task.index, sample),
        logprobs=0,  # of the sampled token alone
        flat_logprobs=True,
        detokenize=False,
    )
