"""Embed at scale. Nearest neighbours will come to live here too."""

from robustsim.search.embedding import EmbedReport, embed_folder, embed_images

__all__ = ["EmbedReport", "embed_folder", "embed_images"]
