"""The demo: how well each layer of a text encoder tells which package a docstring is from.

corpus         docstrings of the standard library, and the source files they stand in
checkpoint     a small trained text encoder, and one pass of the corpus through it
probe          linear probes, the bag of words, and folds that keep a source file together
report         the result, as a table, as sentences and as a plot
run            all of it in order
"""

from fastcap.demo.report import DemoResult as DemoResult
from fastcap.demo.run import run_demo as run_demo

__all__ = ["DemoResult", "run_demo"]
