"""Fields and their products as C++: the text, and the compiler that makes it a library."""

from __future__ import annotations
