"""How fast: each command measures ours and a peer, or the limit of the machine, in turn, and prints their ratios."""
