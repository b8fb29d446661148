"""The resumable run from a dataset to an archive.

run       `extract`: checks what is asked, and drives the passes
batches   which samples run together, and which batches are still to be run
resume    what an earlier run left in the directory
check     whether the run still gives the values that are there
signals   Ctrl-C and others, which end a run after the pass under way
"""

from fastcap.extraction.run import extract as extract
