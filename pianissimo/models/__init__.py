"""The networks: encoder, predictor, joiner, CTC head, and the whole model with its files."""
