"""The settings of a run.

`schema` holds the dataclasses and is free of reading and writing, `load` reads presets, files and `key=value` pairs,
`hashing` computes the stage hashes. Every room of `sweeps` may import this one; it imports only lower packages.
"""
