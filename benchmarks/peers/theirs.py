"""Each peer, used as its own documentation says for caching the activations of many batches.

Nothing here runs without `.venv-peers`. Every peer is given the local model and token ids, so that
none of them asks the hub for anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.questions import Question, read_model
from benchmarks.peers.ways import NNSIGHT, SAE_LENS, TRANSFORMER_LENS, Prepare, Run, Task, Values


def load_nnsight(folder: Path) -> Prepare:
    """`tracer.cache` for whole outputs; `.output` and `save` for a part, or before `stop`."""
    import nnsight

    hf_model = read_model(folder)
    model: Any = nnsight.NNsight(hf_model)

    def prepare(task: Task) -> Run:
        is_plain = task.question.position is None and not task.question.stop
        capture = _cache_with_nnsight if is_plain else _save_with_nnsight
        return Run(task.collected(partial(capture, model, task.question)), hf_model)

    return prepare


def _cache_with_nnsight(model: Any, question: Question, ids: Tensor) -> list[Tensor]:
    blocks = [model.transformer.h[layer] for layer in question.layers]
    with model.trace(ids) as tracer:
        cache = tracer.cache(modules=blocks)
    return [cache[f"model.{site}"].output for site in question.sites]


def _save_with_nnsight(model: Any, question: Question, ids: Tensor) -> list[Tensor]:
    import nnsight

    with model.trace(ids) as tracer:
        acts = nnsight.save([])
        for layer in question.layers:
            value = model.transformer.h[layer].output
            acts.append(value if question.position is None else value[:, question.position])
        if question.stop:
            tracer.stop()
    return acts  # type: ignore[no-any-return]


def load_transformer_lens(folder: Path) -> Prepare:
    """`run_with_cache` of a bridge around the model: raw weights, nothing folded or centred."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    hf_model = read_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bridge: Any = TransformerBridge.boot_transformers(
        "gpt2", hf_model=hf_model, tokenizer=tokenizer, device="cpu"
    )

    def prepare(task: Task) -> Run:
        question = task.question
        names = [f"blocks.{layer}.hook_out" for layer in question.layers]
        options = {
            "names_filter": names,
            "return_cache_object": False,
            "pos_slice": question.position,
            "stop_at_layer": max(question.layers) + 1 if question.stop else None,
        }

        def capture(ids: Tensor) -> list[Tensor]:
            _, cache = bridge.run_with_cache(ids, **options)
            return [_without_position(question, cache[name]) for name in names]

        return Run(task.collected(capture), hf_model)

    return prepare


def _without_position(question: Question, value: Tensor) -> Tensor:
    """Of one position, the dimension stays."""
    return value if question.position is None else value[:, 0]


def load_sae_lens(folder: Path) -> Prepare:
    """`ActivationsStore` into memory, `CacheActivationsRunner` to disk."""

    def prepare(task: Task) -> Run:
        from datasets import Dataset

        dataset = Dataset.from_dict({"input_ids": task.token_ids.tolist()})
        if task.question.to_disk:
            return _cache_runner(folder, task.question, dataset, task.out)
        return _activations_store(proxy(), task, dataset)

    @cache
    def proxy() -> Any:
        """The model, once it is needed: the runner loads one of its own."""
        from sae_lens.load_model import load_model

        return load_model("AutoModelForCausalLM", str(folder), "cpu")

    return prepare


def _activations_store(model: Any, task: Task, dataset: Any) -> Run:
    from sae_lens import ActivationsStore

    question = task.question

    def capture() -> Values:
        store = ActivationsStore.from_config_multi_hook(
            model,
            dataset=dataset,
            hook_names=list(question.sites),
            hook_d_ins=dict.fromkeys(question.sites, model.model.config.n_embd),
            streaming=False,
            context_size=question.n_tokens,
            total_training_tokens=task.token_ids.numel(),
            store_batch_size_prompts=question.batch_size,
            prepend_bos=False,
            seqpos_slice=(None,) if question.position is None else (question.position, None),
            device="cpu",
        )

        def of_batch(_: Tensor) -> list[Tensor]:
            acts = store.get_multi_hook_activations(store.get_batch_tokens())
            return [_without_position(question, acts[site]) for site in question.sites]

        return task.collected(of_batch)()

    return Run(capture, model.model)


def _cache_runner(folder: Path, question: Question, dataset: Any, out: Path) -> Run:
    """The runner, with one buffer of exactly the samples there are: it fills whole buffers."""
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
    from transformers import AutoConfig

    (site,) = question.sites
    width = AutoConfig.from_pretrained(folder).n_embd
    n_tokens = len(dataset) * question.n_tokens
    runner = CacheActivationsRunner(
        CacheActivationsRunnerConfig(
            dataset_path="",
            model_name=str(folder),
            model_class_name="AutoModelForCausalLM",
            hook_name=site,
            d_in=width,
            training_tokens=n_tokens,
            context_size=question.n_tokens,
            model_batch_size=question.batch_size,
            new_cached_activations_path=str(out),
            streaming=False,
            shuffle=False,
            prepend_bos=False,
            device="cpu",
            buffer_size_gb=(n_tokens * width * 4 + 1) / 1e9,
        ),
        override_dataset=dataset,
    )
    with torch.no_grad():  # weights come from a mapped file, and the first pass reads them
        runner.model.model(torch.as_tensor(dataset[: question.batch_size]["input_ids"]))

    def capture() -> Path:
        runner.run()
        return out

    def read(path: Path) -> Values:
        from datasets import load_from_disk

        return {site: load_from_disk(str(path)).with_format("torch")[:][site]}

    return Run(capture, runner.model.model, read)


LOADERS: dict[str, Callable[[Path], Prepare]] = {
    NNSIGHT: load_nnsight,
    TRANSFORMER_LENS: load_transformer_lens,
    SAE_LENS: load_sae_lens,
}
