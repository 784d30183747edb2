"""From a photo to an aligned face: detection, geometry, one warp."""
