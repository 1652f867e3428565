"""Triton kernels with their launchers, one file for each op. Loaded at the first call on a GPU; importing touches no device."""
