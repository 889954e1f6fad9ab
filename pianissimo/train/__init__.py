"""Training: manifests, augmentation, losses, the loop and its checkpoints."""
