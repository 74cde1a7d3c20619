"""Tokenizers judged: texts that are hard on them, the checkpoint's own as the oracle, and whether the two agree."""
