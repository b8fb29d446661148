"""Datasets in files, read one sample at a time without loading the file.

TokenFile         token ids in `.npy` or raw binary files
LineFile          texts or chats in `.txt` or `.jsonl` files, with further columns
ColumnCollator    keeps further columns beside what a collator makes of texts
"""

from fastcap.datasets.collation import ColumnCollator as ColumnCollator
from fastcap.datasets.lines import LineFile as LineFile
from fastcap.datasets.tokens import TokenFile as TokenFile

__all__ = ["ColumnCollator", "LineFile", "TokenFile"]
