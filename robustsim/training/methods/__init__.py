"""What is minimised: pure functions, and the table of the published methods."""
