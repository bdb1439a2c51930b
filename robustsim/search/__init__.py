"""Embed at scale. Nearest neighbours will come to live here too."""

from robustsim.images import find_images
from robustsim.search.embedding import EmbedReport, embed_folder, embed_images
from robustsim.search.store import FORMATS

__all__ = ["FORMATS", "EmbedReport", "embed_folder", "embed_images", "find_images"]
