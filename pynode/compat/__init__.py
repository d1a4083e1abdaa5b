"""Other libraries' signatures over ours."""
