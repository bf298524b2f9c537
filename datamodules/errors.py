"""The one error that a user of the data can expect and act on."""


class DataError(Exception):
    """What is wrong with the data and what to do about it, in at most four lines.

    Raised for what no code of ours can prevent: missing files, no network, a wrong checksum, a broken image. A wrong
    argument is a `ValueError` instead.
    """
