"""Pretraining of a foundation model: corpus, batches, augmentations and stages."""
