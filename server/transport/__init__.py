"""Wire to domain and back: every protocol that the server speaks."""
