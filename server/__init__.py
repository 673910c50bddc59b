"""A gRPC server that reranks documents with one cross-encoder on one device."""

__version__ = "0.1.0"
