"""Archives: activations on disk, committed in groups and read back exactly.

    files     every call to the operating system, so that tests can put a failing one in its place
    layout    names, safetensors headers, dtypes: what bytes of a shard mean
    journal   what a writer has committed, one checksummed line per group
    ranges    ids in their order, by range
    meta      what the archive holds and what it was made from; refuses another configuration
    shards    one group's files while they are written
    writer    the commit protocol
    recovery  what a crash left, and what may be removed or set aside of it
    repair    journals written anew from the headers of shards, when it is asked for
    mapping   a committed shard, checked before it is used
    verification   every byte read and compared
    reader    sites and samples of what is committed

`docs/format.md` is normative.
"""
