"""The theory of an approximately invertible codec, computed and checked."""
