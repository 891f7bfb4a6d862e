"""Properties of a finished model besides accuracy: curvature, sharpness, the loss around it, calibration.

All of it in eval mode, on fixed, un-augmented examples, without weight decay, on the model as it is written (never
compiled), and in full precision.
"""
