"""Every op in plain PyTorch: the oracle of the tests, and the fallback where no kernel is built."""
