"""What is there to say about one pair of pictures, and a page that says it."""
