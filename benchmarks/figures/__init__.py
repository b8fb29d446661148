"""The figures of docs/performance.md and the README, written from the files in benchmarks/results/.

    python -m benchmarks.figures            rewrites both documents and the pictures
    python -m benchmarks.figures --check    changes nothing, and says what is stale

A block of a document, between `<!-- figures: NAME -->` and `<!-- end -->`, is what the newest
result file of its kind gives, by the date in the file. So no number is typed by hand, and a kind
that was never measured says so, with the command that measures it. The programs print the same
blocks when they end.

results     result files: the newest of a kind, and where its figures come from
text        ratios, tables and verdicts as text
suite, peers, small
            the blocks
drawings    the pictures, and the stamp by which a stale one is known
"""
