"""What every part of the package stands on: options, records, files, digests, processes. Nothing here is public."""
