"""The overlay decides: pure rules that answer what becomes of a frame.  No I/O, no clock, no asyncio."""
