"""Publishing: the pruned dataset on the Hub with a card, its provenance, and a way to make it again.

`push.push_to_hub` pushes data, then card and files; `files.write` writes the same files to a directory;
`provenance.build` and `jsonld.build` make the records; `replay.replay` makes the rows again from them.
"""
