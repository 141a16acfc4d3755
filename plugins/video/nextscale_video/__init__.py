"""The video modality of nextscale."""
