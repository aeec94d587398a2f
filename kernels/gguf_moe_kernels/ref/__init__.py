"""The definition of correct: plain numpy, one function per op, the same bits as every kernel."""
