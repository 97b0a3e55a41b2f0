"""What a stream or a kernel must hold to; for the tests of this package and for those of your own stream."""
