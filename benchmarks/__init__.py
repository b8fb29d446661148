"""What capturing costs: time beside the same loop without capture, memory beside the result.

python -m benchmarks.run                  one workload, in interleaved rounds, with a report
python -m benchmarks.imports              what `import fastcap` adds to `import torch`
make bench-peers                          beside other libraries, in an environment of their own
pytest benchmarks --benchmark-enable      small workloads, for comparing two commits

models      the decoder that is captured from
workloads   how much of it, and what each workload isolates
ways        the ways to capture the same sites of the same samples
timing      interleaved rounds, ratios and their intervals
memory      each way's peak, in a process of its own
floors      what this machine's memory and link can do
machine     what it ran on, and at which commit
report      the card, the table, the JSON and the Markdown
peers/      nnsight, TransformerLens and SAELens beside fastcap
"""
