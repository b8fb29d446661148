"""fastcap beside what people would use instead: nnsight, TransformerLens and SAELens.

    make bench-peers                     builds .venv-peers and measures everything
    python -m benchmarks.peers --help    in that environment

Every library asks the same questions of the same random-weight GPT-2, with the same token ids in
the same batches, in a process of its own. Within a round the processes alternate batch by batch.

questions   what is captured, from which model and token ids
ways        the libraries, and how captured batches become one result
ours        the loop without capture, the oracle, fastcap
theirs      each peer, used as its own documentation says
judge       how many values differ from the oracle's, and by how much
worker      a process that runs one way, and waits before every forward pass when told to
team        the workers side by side: rounds, and peak memory in fresh processes
report      the tables, the JSON and the Markdown
"""
