"""Everything that is to be measured on a GPU, in one command that takes less than eight minutes.

python -m benchmarks.gpu              on the GPU that is here: one JSON and one Markdown file
python -m benchmarks.gpu --dry-run    every function once, tiny, on the CPU: whether the code runs
python -m benchmarks.gpu --virtual    the same grid on a device with a virtual clock: arithmetic

toolbox     streams, events, clocks and pinned memory of one GPU, under their torch names
standin     the same over CPU memory, for the dry run and the tests
figures     a measured value beside what was predicted of it
link, kernels, host, hazards, steady
            the micro-benchmarks, each a function from a GPU and sizes to figures
micro       all of them, in the order in which they run
floors      what this machine can do at best, and the cost model's terms out of that
subjects    the models, with transformers or without
destinations  where captured values go
cells       models, selections and destinations, and what came out of each
grid        measures them in turns, and compares them with the oracle
overheads   figures of the micro-benchmarks' list that the grid and its models give
goals       what was promised, and whether it was met
session     runs steps until the time is over, and notes what was not run
report      everything that a run found
page        the same as Markdown
results     both files, and a few lines for the terminal
virtual     the grid's twin on a virtual clock

Needs torch and numpy. What else is missing is said, and what depends on it is listed as not run.
"""
