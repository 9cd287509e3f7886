"""The whole loop through the real command line, on a model of two layers."""
