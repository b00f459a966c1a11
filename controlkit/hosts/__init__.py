"""Hosts: each tells the engine about one framework's U-Net and puts in what the engine adds."""
