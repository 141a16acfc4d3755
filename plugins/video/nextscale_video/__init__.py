"""Video as a modality of nextscale."""
