"""Data: FER+, faces with landmarks, drawn faces, upscalers."""
