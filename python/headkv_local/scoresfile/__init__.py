"""Tools for files with head scores: `headkv scores show`, `diff`, `embed` and `import`."""
