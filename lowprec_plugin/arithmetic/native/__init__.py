"""The law in C++, for CPUs."""
