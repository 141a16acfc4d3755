"""A run's report: one HTML file that needs no other file and sends no request."""
