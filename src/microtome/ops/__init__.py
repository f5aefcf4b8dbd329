"""Operations on slides and levels, behind the ``.wsi`` accessors."""
