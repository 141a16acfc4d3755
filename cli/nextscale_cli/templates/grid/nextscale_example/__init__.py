"""Example data as a modality of nextscale."""
