"""``compile="solve"``: captured fields as C++, and whole solves with their discrete adjoints made of them."""
