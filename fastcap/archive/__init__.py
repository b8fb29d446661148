"""Archives: activations on disk, committed in groups and read back exactly.

    files     every call to the operating system, so that tests can put a failing one in its place
    layout    names, safetensors headers, dtypes: what bytes of a shard mean
    journal   what a writer has committed, one checksummed line per group
    ranges    ids in their order, by range
    meta      what the archive holds and what it was made from; refuses another configuration
    shards    one group's files while they are written
    writer    the commit protocol
    recovery  what a crash left, and what may be removed of it
    reader    sites and samples of what is committed

`docs/format.md` is normative.
"""
