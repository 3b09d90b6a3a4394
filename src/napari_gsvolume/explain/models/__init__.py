"""Models and inputs to explain: loading, calling, hooks and the layout of what layers return."""
