"""Access token management for Flask: sign in, and never think about tokens again."""
