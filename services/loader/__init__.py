"""The loader: finds, starts, supervises and unloads native model backends."""
