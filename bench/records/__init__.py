"""Records of trials: written whole, read strictly, locked."""
