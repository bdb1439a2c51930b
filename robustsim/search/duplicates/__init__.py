"""Pictures that are alike: pairs, groups of them, and what becomes of the files."""
