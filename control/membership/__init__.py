"""Who is there: membership protocol cores (sans-IO) and their asyncio shell."""
