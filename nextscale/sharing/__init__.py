"""Share a run: what others need to load and to judge it, without anything private (``push``)."""
