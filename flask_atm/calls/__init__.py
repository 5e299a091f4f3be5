"""One call of an API: where its token may go, over which connection, for how long."""
