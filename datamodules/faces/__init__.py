"""Faces with 68 landmarks: annotations, crops, augmentation, batches."""

from datamodules.faces.datamodule import FaceLandmarkDataModule

__all__ = ["FaceLandmarkDataModule"]
