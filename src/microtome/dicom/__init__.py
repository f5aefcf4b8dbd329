"""What the bytes mean: headers, the pyramid they form, where each frame is and how it decodes."""
