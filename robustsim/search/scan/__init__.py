"""Codes that bound what they leave out, and an exact scan over them."""
