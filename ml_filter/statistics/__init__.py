"""Agreement of scores with labels and of raters with each other, with intervals; calibration of scores."""
