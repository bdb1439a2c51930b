"""The index: what is added to it, brought up to date and asked for."""
