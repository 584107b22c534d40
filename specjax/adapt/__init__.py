"""Adaptation of a foundation model to a survey: configurations, targets, stages, selection and prediction."""
