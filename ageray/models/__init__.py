"""Networks from a batch of aligned faces to named tensors, and the decoding of those to ages."""
