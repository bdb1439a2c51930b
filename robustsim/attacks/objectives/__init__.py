"""What an attacker wants: to move an embedding, to turn a decision."""
