"""Detection by neighbours: which bank of pictures one belongs to, and what else says so."""
