"""What is to be measured on a GPU, in commands that together take less than half an hour.

python -m benchmarks.gpu              what bounds: floors, a grid of models and ways
python -m benchmarks.gpu.soak         whether it is right: random programs, and broken engines
python -m benchmarks.gpu.timeline     whether copies run beside the model: the profiler's trace
python -m benchmarks.gpu.peers        what other ways cost: hooks, hidden states, nnsight, loops
  ... --dry-run                       every function once, tiny, on the CPU: whether the code runs

toolbox     streams, events, clocks and pinned memory of one GPU, under their torch names
standin     the same over CPU memory, for the dry run and the tests
command     options, an end in time, and a report after every step
report      what a report is made of: entries, figures, goals
subjects    the models, with transformers or without
grid        what is asked of which model in which ways, and what bounds a pass
turns       one case, each way in turns with the baseline
micro       what the design rests on, measured by itself

Needs torch and numpy; the soak and the dry run, the tests' own modules. What else is missing is
said, and what depends on it is listed as not run.
"""
