"""2-D images: the modality that Visual Autoregressive Modeling (VAR) was published for."""
