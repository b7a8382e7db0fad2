"""What depends on the hosts' insides: each private name is there, or an error names it; and Lightning's two names."""
