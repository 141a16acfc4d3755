"""How the cost of a sample grows with the side n of the latent grid: next-scale against next-token prediction."""
