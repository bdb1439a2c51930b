"""What is asked: choices, ratings, ladders of distortions, and the pictures of the questions."""
