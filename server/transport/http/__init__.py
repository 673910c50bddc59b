"""HTTP and JSON: many dialects of reranking over one domain call."""
