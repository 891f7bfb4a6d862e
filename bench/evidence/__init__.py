"""Results repeated, compared, merged, exported; final weights measured."""
