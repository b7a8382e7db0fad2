"""What people read: numbers, tables, pictures, errors that name options, and files that appear whole. No torch here."""
