"""The host's part of a launch: new tensors, the device that a launch is for, and the launch itself."""
