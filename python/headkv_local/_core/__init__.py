"""What the public modules are made of; the only package that calls the native library."""
