"""The resumable run from a dataset to an archive.

run            `extract`: checks what is asked, and drives the passes
batches        which samples run together, and which batches are still to be run
earlier        what an earlier run left in the directory
writing        the consumer of the stream: values into files, full groups to be committed
beside         token ids, masks and labels
interruption   signals, which end a run after the pass under way
"""

from fastcap.extraction.run import extract as extract
