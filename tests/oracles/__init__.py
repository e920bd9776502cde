"""NumPy oracles: slow, obvious readings of the equations, for the tests only.

Nothing here imports the package under test.
"""
