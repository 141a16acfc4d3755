"""Point sets as a modality of nextscale."""
