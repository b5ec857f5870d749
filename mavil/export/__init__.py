"""Encoders leave the project: folders that load elsewhere, their card, the Hub, and other people's formats."""
