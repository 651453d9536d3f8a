"""What every part of the package stands on: files, digests, processes, trackers, notebook tables. Nothing public."""
