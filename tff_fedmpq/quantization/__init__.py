"""Mathematics of FedMPQ, as pure functions of tensors.

representations.py   meaning of codes as weights
scales.py            scale of a layer, chosen from its weights
bit_planes.py        densities of bit planes, pruning of the top one
group_lasso.py       penalty on bit planes
code_updates.py      the integer weight update
activations.py       ReLU outputs of k bits
packing.py           codes of b bits in bytes
gaussian.py          optimal quantizers of Gaussian weights
tracing.py           functions that are traced once for each graph
"""

# First: a hook of `tff_fedmpq` on this import loads `tff_fedmpq.keras`, which must not
# find half-initialized modules of this package.
import tensorflow  # noqa: F401
