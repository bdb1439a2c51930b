"""The index: codes that bound what they leave out, an exact scan over them, and the store that keeps them."""
