"""Training scripts in the manner of other frameworks, each run as it is and with fastssl: ``examples/README.md``."""
