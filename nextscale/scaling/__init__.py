"""Scaling laws: a ladder of transformers on one tokenizer, and the laws that its losses follow."""
