"""Audio as a modality of nextscale."""
