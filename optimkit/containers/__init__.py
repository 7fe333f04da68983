"""What the caller hands in: `Param`, trees of parameters, and gradients that mirror them."""
