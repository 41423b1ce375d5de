"""What a comparison says: its numbers, pictures, words and the page that holds them."""
