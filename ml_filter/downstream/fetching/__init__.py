"""Get documents: arXiv, sitemaps, feeds, web pages and GitHub repositories, politely and incrementally."""
