"""What lies in the folder of a saved model: weights, record, code file, model card, alarm."""
