"""Operations with a reference and, later, fused forms."""
