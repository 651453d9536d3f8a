"""Publishing: the pruned dataset on the Hub with a card, its provenance, and a way to rebuild it.

`push.push_to_hub` pushes data, card and files in one commit; `save.save` saves all of it to a directory;
`provenance.build` and `jsonld.build` make the records; `replay.replay` rebuilds the rows from them.
"""
