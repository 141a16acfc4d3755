"""Checkpoints of published VAR (https://arxiv.org/abs/2404.02905): read into a run, written from one.

A run made of them is an ordinary run: the layers are this project's, only the names differ.
"""
