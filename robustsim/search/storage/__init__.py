"""The store of an index: its rows, the seal that says which of them count, and all that reads them back."""
