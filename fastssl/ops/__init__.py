"""The contract of each op: schema, fake, autograd, input checks. One file, one op."""
