"""The graph plugin: generation by growing a graph from contracted edges."""
