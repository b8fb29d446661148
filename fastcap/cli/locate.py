"""From what is written on a command line to a model or a batch."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcap.errors import ArgumentError, MissingExtraError
from fastcap.formatting import a_kind, in_one_line
from fastcap.huggingface.loading import dtype_argument

FORM = "package.module:attribute"


def load_attribute(text: str, what: str) -> Any:
    """Import `package.module:attribute`, with the working directory among the places to look.

    Args:
        text: The path of the import; the attribute may have dots.
        what: What the errors call it, such as `MODEL`.

    Raises:
        ArgumentError: It cannot be read, imported or found; the message has the reason.
    """
    module_name, colon, attribute = text.partition(":")
    if not (colon and module_name and attribute):
        raise ArgumentError(f"{what} {text!r} is not of the form {FORM}, such as mymodels:make.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ArgumentError(
            f"{what} {text!r}: importing {module_name!r} failed with {in_one_line(error)}. Run "
            "from the folder that has it, or install the package."
        ) from error
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        names = [name for name in vars(module) if not name.startswith("_")]
        raise ArgumentError(
            f"{what} {text!r}: {module_name!r} has no {attribute!r}. It has {sorted(names)[:20]}."
        ) from error


def load_model(text: str, with_weights: bool) -> nn.Module:
    """A module, what a callable without arguments returns, or the model in a local folder.

    Args:
        text: `package.module:attribute`, or a folder that transformers can load.
        with_weights: Whether a folder's weights are needed, or its configuration is enough. Then
            the model is on the meta device.

    Raises:
        ArgumentError: There is no such thing, or it is not a model.
        MissingExtraError: A folder, and transformers is not installed.
    """
    if Path(text).is_dir():
        return _load_folder(Path(text), with_weights)
    if ":" not in text:
        raise ArgumentError(
            f"MODEL {text!r} is neither a folder nor an import path of the form {FORM}. Models are "
            "not downloaded: give a folder with a config.json."
        )
    return _check_model(text, _called(text, "MODEL", load_attribute(text, "MODEL")))


def has_weights(text: str) -> bool:
    """Whether a model has data: everything but a folder that holds a configuration alone."""
    folder = Path(text)
    return not folder.is_dir() or any(
        path.suffix in (".safetensors", ".bin") for path in folder.iterdir()
    )


def load_example(text: str) -> Any:
    """A batch, or what a callable without arguments returns.

    Raises:
        ArgumentError: There is no such thing.
    """
    return _called(text, "--example", load_attribute(text, "--example"))


def load_dataset(text: str) -> Any:
    """A dataset or a list, or what a callable without arguments returns.

    Raises:
        ArgumentError: There is no such thing, or it is not a dataset.
    """
    found = load_attribute(text, "--data")
    if isinstance(found, type) or not _is_dataset(found):
        found = _called(text, "--data", found)
    if not _is_dataset(found):
        raise ArgumentError(
            f"--data {text!r} gives {a_kind(type(found))}, and a dataset can be indexed or "
            "iterated. Name a dataset, a list, or a function without arguments that returns one."
        )
    return found


def _is_dataset(found: Any) -> bool:
    return hasattr(found, "__getitem__") or hasattr(found, "__iter__")


def _called(text: str, what: str, found: Any) -> Any:
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        return found()
    except Exception as error:
        raise ArgumentError(
            f"{what} {text!r}: calling it without arguments failed with {in_one_line(error)}."
        ) from error


def _check_model(text: str, found: Any) -> nn.Module:
    if not isinstance(found, nn.Module):
        raise ArgumentError(
            f"MODEL {text!r} gives {a_kind(type(found))}, not a torch.nn.Module. Name a module, "
            "or a function without arguments that returns one."
        )
    return found


def _load_folder(folder: Path, with_weights: bool) -> nn.Module:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = [str(name) for name in config.get("architectures") or []]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ArgumentError(
            f"MODEL {str(folder)!r}: cannot read its config.json ({in_one_line(error)}). Give the "
            f"folder of a saved transformers model, or an import path: {FORM}."
        ) from error
    if find_spec("transformers") is None:
        raise MissingExtraError(
            f"MODEL {str(folder)!r} is a folder, which needs transformers: "
            "pip install 'torch-fastcap[hf]'."
        )
    import transformers

    auto: Any = transformers.AutoModel
    kind: Any = _model_class(transformers, names)
    try:
        if with_weights:
            as_saved = {dtype_argument(transformers): "auto"}
            model = (kind or auto).from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **as_saved
            )
        else:
            settings = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            with torch.device("meta"), _default_dtype(_dtype_of(settings)):
                model = (
                    kind(settings) if kind else auto.from_config(settings, trust_remote_code=False)
                )
    except Exception as error:
        raise ArgumentError(
            f"MODEL {str(folder)!r}: transformers cannot load it: {in_one_line(error)}."
        ) from error
    return _check_model(str(folder), model)


def _model_class(transformers: Any, names: list[str]) -> Any:
    """The class that a configuration names; of transformers' models only, since it is called."""
    kind = getattr(transformers, names[0], None) if names else None
    is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    return kind if is_model else None


def _dtype_of(settings: Any) -> torch.dtype:
    """What the weights were saved in, which is what they are loaded in."""
    name = "dtype" if hasattr(settings, "dtype") else "torch_dtype"  # renamed in transformers 4.56
    dtype = getattr(settings, name, None)
    return dtype if isinstance(dtype, torch.dtype) else torch.get_default_dtype()


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
