"""Training: from random weights, from a pretrained model, and on the outputs of another model."""
