"""Randomness is addressed, not consumed: a seed for every (run seed, purpose, index), whatever was drawn before."""

import hashlib


def addressed_seed(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed that is a function of its arguments alone, the same on every machine."""
    address = "/".join([str(seed), purpose, *map(str, index)])
    return int.from_bytes(hashlib.blake2b(address.encode(), digest_size=8).digest(), "big") >> 1
