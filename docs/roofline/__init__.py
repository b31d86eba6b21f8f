"""What docs/roofline.md is computed from: tiles, the passes as lists of kernels, what a kernel costs."""
