"""Whole detectors as ONNX models."""
