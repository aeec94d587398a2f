"""Which expert is where: bookkeeping on numbers of layers, experts and slots, without weights or GPUs."""
