"""The model: a Dirichlet process mixture of patches (N, D), fitted by batched EM; torch only."""
