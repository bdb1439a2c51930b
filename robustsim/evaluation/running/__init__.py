"""How questions are worked through: plans of attack, workers, and a journal that survives."""
