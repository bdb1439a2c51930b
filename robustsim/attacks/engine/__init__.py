"""What all attacks share: options, the region they may move in, the bookkeeping of a run, results."""
