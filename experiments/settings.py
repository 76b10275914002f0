"""Names of before, until nobody uses them."""

from experiments.config import check_key, parse_word

__all__ = ["check_key", "parse_word"]
