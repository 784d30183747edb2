"""One face from bytes to the network's input: decode, detect, cut a canvas, align, augment."""
