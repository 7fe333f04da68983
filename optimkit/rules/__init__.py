"""What optimizers, transforms and penalties are made of, and how they become one chain and one program."""
