"""Names: records that map a name to a node's signed address, and where they are kept."""
