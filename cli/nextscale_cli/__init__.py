"""The command line. One file per command; each imports what it needs only when it runs."""
