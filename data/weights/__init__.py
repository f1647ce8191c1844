"""The weights that come with the book; an installed package carries some of them as iodine_nb.weights."""
