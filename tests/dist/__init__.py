"""What users install: `make dist` builds it, `make dist-check` installs and tests each form of it in fresh environments."""
