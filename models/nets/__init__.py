"""Networks and their training, in PyTorch. Scoring does not come here: it is numpy on the trained weights."""
