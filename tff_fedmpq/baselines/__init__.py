"""The schemes that FedMPQ is compared with, one file each.

fedavg.py, fedpaq.py, uveqfed.py, fpq8.py, aqfl.py    configuration and builder
update_uplink.py                                      encodings of quantized updates
stochastic_quantizer.py, lattice.py                   their quantizers
entropy_coding.py                                     their range coder
registry.py                                           all schemes by name
"""
