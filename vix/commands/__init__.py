"""What `main.py` offers beside training: each module or package here has `main(arguments) -> exit code`."""

import argparse


def positive(text: str) -> int:
    """Reads an option that counts something.

    Raises:
        argparse.ArgumentTypeError: If it is no positive whole number.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text}")
    return int(text)


def side(text: str) -> tuple[int, int]:
    """Reads an image's size: 64, or 64x48 for height and width.

    Raises:
        argparse.ArgumentTypeError: If it is neither.
    """
    sides = text.split("x")
    if len(sides) > 2 or not all(each.isdecimal() and int(each) > 0 for each in sides):
        raise argparse.ArgumentTypeError(f"must be a side or HEIGHTxWIDTH in pixels, such as 64 or 64x48, got {text}")
    return int(sides[0]), int(sides[-1])
