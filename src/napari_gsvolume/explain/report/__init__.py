"""Reports of explanations: HTML, figures and tables."""
