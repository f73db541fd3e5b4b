"""Rate and distortion, measured: data sets, classical codecs, metrics, curves."""
