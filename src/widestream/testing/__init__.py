"""What a stream or a kernel must hold to, for the tests of this package and for those of your own stream.

    from widestream.testing import check_stream

    check_stream({"kind": "my_package:MyStream", "rank": 4})

`streams.py` has the checks of a stream, `memory.py` those of what its backward pass keeps, `models.py` the small models
that they build, `kernels.py` what an implementation of the exchange must give.
"""

from widestream.testing.streams import CHECKS, check_stream

__all__ = ["CHECKS", "check_stream"]
