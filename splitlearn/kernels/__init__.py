"""What codecs are made of: packing, thresholds, levels, entropy coding."""
