"""Tokens, masks, encoders, fusion, decoders and what is built of them."""
