"""The demo: questions about a long document, answered from the full cache and from the compacted one."""
