"""`headkv doctor`: does the installed library compute what it should here, and what a bug report needs."""
