"""What is made of the answers: reports, tables, plots, comparisons."""
