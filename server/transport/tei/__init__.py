"""The gRPC interface of Hugging Face's text-embeddings-inference, for its clients."""
