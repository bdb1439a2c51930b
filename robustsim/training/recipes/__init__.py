"""What decides: recipes, and their files."""
