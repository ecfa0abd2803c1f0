"""Plans a run by formula: memory by part, the layout, and what credit costs in time. Nothing is loaded or measured."""
