"""What several losses share, one subject a file: arguments, ids, inner products, reductions, row statistics, blocks of rows."""
