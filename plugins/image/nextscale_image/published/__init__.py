"""Import and export of published VAR's checkpoints (https://arxiv.org/abs/2404.02905).

An imported run is an ordinary run with this project's layers. Only the names of the tensors differ.
"""
