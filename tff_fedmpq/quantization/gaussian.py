"""Uniform quantizers of least mean squared error for Gaussian weights.

They have ``2**b`` levels and no zero level, as in `SIGN_MAGNITUDE` (Max, "Quantizing
for Minimum Distortion", 1960, Table II, continued to 8 bits by numerical integration).
"""

import numpy as np

# Optimal step sizes at 1, ..., 8 bits, in standard deviations: float32[8], as weights.
STEPS = np.array(
    [1.5958, 0.99569, 0.58602, 0.33520, 0.18814, 0.10406, 5.6868e-2, 3.0762e-2],
    np.float32,
)
# Mean squared errors at these steps, in variances: float64[8].
DISTORTIONS = np.array(
    [0.3634, 0.1188, 3.744e-2, 1.154e-2, 3.495e-3, 1.040e-3, 3.043e-4, 8.769e-5]
)
