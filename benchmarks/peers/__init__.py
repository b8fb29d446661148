"""fastcap beside what people would use instead: nnsight, TransformerLens and SAELens.

    make bench-peers                     builds .venv-peers and measures everything
    python -m benchmarks.peers --help    in that environment

Every library asks the same questions of the same random-weight GPT-2, with the same token ids in
the same batches. Each peer shares a process with fastcap and with passes without capture, and they
take turns before every forward pass.

questions   what is captured, from which model and token ids
ways        the loop without capture, fastcap, and how captured batches become one result
theirs      each peer, used as its own documentation says
worker      what a process does: time some ways, or measure one's memory
"""
