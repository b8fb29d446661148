"""What capturing costs: time beside the same loop without capture, memory beside the result.

python -m benchmarks.suite                every workload that this machine can run, in every way
python -m benchmarks.imports              what `import fastcap` adds to `import torch`
make bench-peers                          beside other libraries, in an environment of their own
python -m benchmarks.gpu                  what is to be measured on a GPU; three programs beside it
python -m benchmarks.figures              documents and pictures from the newest results
pytest benchmarks --benchmark-enable      small workloads, for comparing two commits

models      the decoder that is captured from
workloads   how much of it, and what each workload isolates
turns       runs that take turns before every forward pass
memory      each way's peak, in a process of its own
checkout    which code was measured
programs    what the programs share: arguments, refusals, and what every result file names
peers/      nnsight, TransformerLens and SAELens beside fastcap
figures/    the tables, numbers and pictures of docs/performance.md and the README

Programs write JSON with machine, date, commit and torch, and print what `figures/` makes of it.
Timing, intervals, floors, equality and ways are those of `fastcap.bench`.
"""
