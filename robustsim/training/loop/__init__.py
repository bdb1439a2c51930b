"""What repeats and survives: the loop, its state, its log, what it writes."""
