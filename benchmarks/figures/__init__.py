"""The figures of docs/performance.md and the README, written from the files in benchmarks/results/.

    python -m benchmarks.figures            rewrites both documents and the pictures
    python -m benchmarks.figures --check    changes nothing, and says what is stale

A block of a document, between `<!-- figures: NAME -->` and `<!-- end -->`, is what the newest
result file of its kind gives, by the date in the file. So no number is typed by hand, and a kind
that was never measured says so, with the command that measures it.

results     result files: of which kind, the newest, and where its figures come from
text        ratios, tables and verdicts as text
acceptance  suite  peers  hooks  copies  scaling  runs
            one kind each, or some small ones: its block, and the line of it in the summary
catalogue   which kinds, blocks and pictures there are
drawings    what is drawn
pictures    how: marks, axes, and the stamp by which a stale picture is known
pages       blocks in documents
"""
