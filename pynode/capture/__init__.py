"""What a module computes, as a small array program: captured, lowered, and printed by pynode.julia and pynode.cpp."""
