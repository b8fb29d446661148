"""Hugging Face models: from a model name and texts to activations.

extract       activations of texts, chats or files, from a model id, a folder or a built model
sites         the module names of `block`, `mlp`, `attention` or `residual` in one model
Collator      texts or chats to one padded batch with its mask
read_texts    the texts or chats of a `.txt` or `.jsonl` file
load          a model and its tokenizer, in eval mode

Tokenization, padding and chat templates are those of the tokenizer. Only `load`, and `extract`
with a name, import transformers.
"""

from fastcap.huggingface.aliases import sites as sites
from fastcap.huggingface.collator import Collator as Collator
from fastcap.huggingface.extraction import extract as extract
from fastcap.huggingface.loading import load as load
from fastcap.huggingface.texts import read_texts as read_texts

__all__ = ["Collator", "extract", "load", "read_texts", "sites"]
