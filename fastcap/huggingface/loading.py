"""Loading a model and its tokenizer with transformers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcap.errors import LoadError, MissingExtraError

RENAMED_DTYPE = (4, 56)
"""The release of transformers that renamed `torch_dtype` to `dtype`."""

Name = str | os.PathLike[str]
"""A model id, or the path of a folder."""


def load(
    name: Name,
    *,
    device: torch.device | str | int = "cpu",
    dtype: torch.dtype | str = "auto",
    local_files_only: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """Load a model without a head, as `AutoModel` does, and its tokenizer.

    Args:
        name: A folder written by `save_pretrained`, or a model id.
        device: Where to put the model.
        dtype: Of the parameters; `"auto"` is the dtype they were saved in.
        local_files_only: Never contact the network: a folder, or a cached download.
        revision: Branch, tag or commit of a model id.
        trust_remote_code: Whether to run code shipped with the model.

    Returns:
        The model in eval mode, and the tokenizer. For a model with a head, load it with its own
        class and pass it to `extract` with `tokenizer=`.

    Raises:
        LoadError: No such folder or id, or it cannot be loaded.
        MissingExtraError: transformers is not installed.
    """
    options = {
        "local_files_only": local_files_only,
        "revision": revision or "main",
        "trust_remote_code": trust_remote_code,
    }
    tokenizer = load_tokenizer(name, **options)
    return load_model(name, device, dtype, **options), tokenizer


def load_tokenizer(name: Name, **options: Any) -> Any:
    """The tokenizer alone; see `load`."""
    transformers = _transformers()
    return _from_pretrained("tokenizer", transformers.AutoTokenizer.from_pretrained, name, options)


def load_model(
    name: Name, device: torch.device | str | int, dtype: torch.dtype | str, **options: Any
) -> nn.Module:
    """The model alone, in eval mode; see `load`."""
    transformers = _transformers()
    options[dtype_argument(transformers)] = dtype
    make = transformers.AutoModel.from_pretrained
    model: nn.Module = _from_pretrained("model", make, name, options)
    return model.eval().to(device)


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise MissingExtraError(
            "Loading a model by name needs transformers. Install it with: "
            "pip install 'torch-fastcap[hf]'"
        ) from None
    return transformers


def _from_pretrained(
    what: str, make: Callable[..., Any], name: Name, options: dict[str, Any]
) -> Any:
    folder = Path(name).expanduser()
    is_folder = folder.is_dir()
    if not is_folder and _is_path(name):
        raise LoadError(
            f"Cannot load the {what}: there is no folder {str(folder)!r}. Pass a folder that "
            "save_pretrained wrote, or a model id such as 'openai-community/gpt2'."
        )
    try:
        # Said aloud: left out, transformers asks on the terminal whether to run a model's code.
        options = {"trust_remote_code": False, **options}
        return make(str(folder) if is_folder else str(name), **options)
    except (OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0].rstrip(".:")
        hint = _of_folder(what, folder) if is_folder else _of_id(str(name), options)
        raise LoadError(f"Cannot load the {what} of {str(name)!r}: {why}. {hint}") from error


def _is_path(name: Name) -> bool:
    """Whether a name can only be meant as a path: an id is `name` or `owner/name`."""
    text = str(name)
    return not isinstance(name, str) or text.startswith((".", "~", os.sep)) or text.count("/") > 1


def _of_folder(what: str, folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir())
    names = f"{found[:10]}{'...' if len(found) > 10 else ''}" if found else "nothing"
    return (
        f"The folder holds {names}. Write the {what} into it with {what}.save_pretrained(folder), "
        "or build model and tokenizer yourself and pass both: extract(model, texts, site, "
        "tokenizer=tokenizer)."
    )


def _of_id(name: str, options: dict[str, Any]) -> str:
    where = "this machine's cache" if options["local_files_only"] else "the cache or on the hub"
    return (
        f"There is no folder {name!r} either. Looked for the id in {where}: check its spelling, "
        f"or, where there is network, run 'hf download {name}' and pass the folder it prints."
    )


def dtype_argument(transformers: Any) -> str:
    """What `from_pretrained` calls the dtype to load in."""
    release = tuple(int(number) for number in transformers.__version__.split(".")[:2])
    return "dtype" if release >= RENAMED_DTYPE else "torch_dtype"
