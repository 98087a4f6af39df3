"""Training: from nothing, from a pretrained model, on what another model says."""
