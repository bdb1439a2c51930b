"""Where training images come from: folders, tar shards, Hugging Face data sets; and batches of them."""
